//! Whether two runs are the same, and where they part if they are not.

use std::fmt;

// How many common steps are shown before the first that differs, and how many after it.
const BEFORE: usize = 8;
const AFTER: usize = 4;

/// Where two traces part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parting {
    /// How many steps they have in common.
    pub common: usize,
    shared: Vec<String>,
    left: Vec<String>,
    right: Vec<String>,
}

/// Where `left` and `right` part; `None` if they are equal.
pub fn parting(left: &[String], right: &[String]) -> Option<Parting> {
    if left == right {
        return None;
    }
    let common = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    let from_there = |lines: &[String]| lines.iter().skip(common).take(AFTER).cloned().collect();
    Some(Parting {
        common,
        shared: left[common.saturating_sub(BEFORE)..common].to_vec(),
        left: from_there(left),
        right: from_there(right),
    })
}

impl fmt::Display for Parting {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "the first {} steps are the same", self.common)?;
        for line in &self.shared {
            writeln!(out, "          {line}")?;
        }
        for (side, lines) in [("one  ", &self.left), ("other", &self.right)] {
            if lines.is_empty() {
                writeln!(out, "    {side} ends here")?;
            }
            for line in lines {
                writeln!(out, "    {side} {line}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn equal_traces_do_not_part() {
        assert_eq!(parting(&lines("a b c"), &lines("a b c")), None);
    }

    #[test]
    fn the_first_differing_step_of_both_is_shown() {
        let parting = parting(&lines("a b c d"), &lines("a b x d")).expect("they differ");
        assert_eq!(parting.common, 2);
        let text = parting.to_string();
        assert!(
            text.contains("one   c") && text.contains("other x"),
            "{text}"
        );
    }

    #[test]
    fn a_trace_that_ends_early_parts_there() {
        let parting = parting(&lines("a b"), &lines("a b c")).expect("they differ");
        assert!(parting.to_string().contains("one   ends here"), "{parting}");
    }
}
