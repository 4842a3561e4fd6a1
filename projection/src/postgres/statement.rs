//! Reads just enough of PostgreSQL's SQL to tell names of parameters from all else.

/// A text of SQL with its named parameters as `$1`, `$2` ….
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Translated {
    /// What PostgreSQL is given; without the `;` that may end it.
    pub(super) sql: String,
    /// The names behind `$1`, `$2` …, without the `:`. Each is in it once.
    pub(super) names: Vec<String>,
    /// The first word of each statement, in lower case.
    pub(super) verbs: Vec<String>,
    /// The first parameter that is a number in the original.
    pub(super) numbered: Option<String>,
}

/// Gives `:name` a number, and leaves alone strings, quoted names, comments and casts.
pub(super) fn translate(text: &str) -> Translated {
    let mut out = Translated::default();
    let bytes = text.as_bytes();
    let at = |place: usize| bytes.get(place).copied().unwrap_or(0);
    let (mut place, mut begins, mut end) = (0, true, 0);
    while place < bytes.len() {
        let from = place;
        let mut counts = true;
        place = match (at(place), at(place + 1)) {
            (b'\'', _) => after_quoted(bytes, place, b'\'', false),
            (b'"', _) => after_quoted(bytes, place, b'"', false),
            (b'-', b'-') => {
                counts = false;
                let rest = &bytes[place..];
                let line = rest.iter().position(|byte| *byte == b'\n');
                place + line.unwrap_or(rest.len())
            }
            (b'/', b'*') => {
                counts = false;
                after_comment(bytes, place)
            }
            (b'$', b'0'..=b'9') => {
                let to = after(bytes, place + 1, |byte| byte.is_ascii_digit());
                out.numbered.get_or_insert(text[place..to].to_owned());
                to
            }
            (b'$', _) => after_dollar_quoted(bytes, place),
            (b':', b':' | b'=') => place + 2,
            (b':', next) if begins_name(next) => {
                let to = after(bytes, place + 1, |byte| {
                    begins_name(byte) || byte.is_ascii_digit()
                });
                let name = &text[place + 1..to];
                let known = out.names.iter().position(|it| it == name);
                let number = known.unwrap_or_else(|| {
                    out.names.push(name.to_owned());
                    out.names.len() - 1
                });
                out.sql.push_str(&format!("${}", number + 1));
                (place, end, begins) = (to, out.sql.len(), false);
                continue;
            }
            (byte, _) if begins_name(byte) => {
                let to = after(bytes, place, |byte| {
                    begins_name(byte) || byte.is_ascii_digit() || byte == b'$'
                });
                let word = text[place..to].to_ascii_lowercase();
                let is_escaped = word == "e" && at(to) == b'\'';
                if begins {
                    out.verbs.push(word);
                    begins = false;
                }
                if is_escaped {
                    after_quoted(bytes, to, b'\'', true)
                } else {
                    to
                }
            }
            (b'0'..=b'9', _) => after(bytes, place, |byte| {
                byte.is_ascii_alphanumeric() || byte == b'_'
            }),
            (b';', _) => {
                begins = true;
                counts = false;
                place + 1
            }
            (byte, _) => {
                counts = !byte.is_ascii_whitespace();
                place + 1
            }
        };
        out.sql.push_str(&text[from..place]);
        if counts {
            end = out.sql.len();
        }
    }
    // A comment behind the last word goes too.
    out.sql.truncate(end);
    out
}

// Letters of any script: what is not ASCII is part of a name for PostgreSQL.
fn begins_name(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn after(bytes: &[u8], from: usize, is_in: impl Fn(u8) -> bool) -> usize {
    let rest = &bytes[from..];
    from + rest
        .iter()
        .position(|byte| !is_in(*byte))
        .unwrap_or(rest.len())
}

// A quote that is doubled is no end: it begins the next piece at once.
fn after_quoted(bytes: &[u8], from: usize, quote: u8, has_escapes: bool) -> usize {
    let mut place = from + 1;
    while place < bytes.len() {
        if has_escapes && bytes[place] == b'\\' {
            place += 2;
        } else if bytes[place] != quote {
            place += 1;
        } else if bytes.get(place + 1) == Some(&quote) {
            place += 2;
        } else {
            return place + 1;
        }
    }
    bytes.len()
}

fn after_comment(bytes: &[u8], from: usize) -> usize {
    let (mut place, mut depth) = (from, 0u32);
    while place < bytes.len() {
        match (bytes[place], bytes.get(place + 1)) {
            (b'/', Some(b'*')) => {
                depth += 1;
                place += 2;
            }
            (b'*', Some(b'/')) => {
                depth -= 1;
                place += 2;
                if depth == 0 {
                    return place;
                }
            }
            _ => place += 1,
        }
    }
    bytes.len()
}

fn after_dollar_quoted(bytes: &[u8], from: usize) -> usize {
    let tag = after(bytes, from + 1, |byte| {
        begins_name(byte) || byte.is_ascii_digit()
    });
    if bytes.get(tag) != Some(&b'$') {
        return from + 1;
    }
    let tag = &bytes[from..=tag];
    let body = from + tag.len();
    let found = bytes[body..]
        .windows(tag.len())
        .position(|window| window == tag);
    found.map_or(bytes.len(), |found| body + found + tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sql(text: &str) -> String {
        translate(text).sql
    }

    #[test]
    fn names_become_numbers_and_the_same_name_the_same_number() {
        let translated = translate(
            "INSERT INTO t VALUES (:data->>'a', :stream, (:data ->> 'b')::int, :revision::text)",
        );
        assert_eq!(
            translated.sql,
            "INSERT INTO t VALUES ($1->>'a', $2, ($1 ->> 'b')::int, $3::text)"
        );
        assert_eq!(translated.names, ["data", "stream", "revision"]);
        assert_eq!(translated.verbs, ["insert"]);
    }

    #[test]
    fn what_is_no_parameter_is_left_alone() {
        for text in [
            "SELECT ':a'",
            "SELECT 'it''s :a'",
            r"SELECT E'it\'s :a'",
            r"SELECT e'\\', 'x:a'",
            r"SELECT 'no escape \', 1 AS x",
            "SELECT U&':a'",
            "SELECT $$ :a $$",
            "SELECT $x$ :a $$ :a $x$",
            "SELECT \":a\" FROM \"b\"\":c\"",
            "SELECT 1 -- :a\n + 2",
            "SELECT /* :a /* :b */ :c */ 1",
            "SELECT a::int[1:2]",
            "SELECT f(x := 1)",
            "SELECT a$b, ä$ü",
            "SELECT 'ends :a",
            "SELECT /* :a",
            "SELECT $x$ :a",
            r"SELECT E'\",
        ] {
            let translated = translate(text);
            assert_eq!(translated.names, [""; 0], "{text}");
            assert!(text.starts_with(&translated.sql), "{text}");
            assert_eq!(translated.numbered, None, "{text}");
        }
    }

    #[test]
    fn what_ends_a_statement_is_cut_and_several_are_counted() {
        assert_eq!(sql("SELECT 1 ; \n-- that is all"), "SELECT 1");
        assert_eq!(sql("SELECT 'a;' || :b;"), "SELECT 'a;' || $1");
        assert_eq!(
            translate("/* x */ (SELECT 1); begin").verbs,
            ["select", "begin"]
        );
        assert_eq!(sql(" ; "), "");
    }

    #[test]
    fn numbers_are_seen() {
        assert_eq!(translate("SELECT $12").numbered.as_deref(), Some("$12"));
        assert_eq!(translate("SELECT 'a$1'").numbered, None);
    }
}
