//! What the command line takes and refuses.

use clap::CommandFactory;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    CommandLine::command().debug_assert();
}

#[test]
fn causes_are_said_once() {
    let inner = std::io::Error::other("no such disk");
    let error = anyhow::Error::new(inner)
        .context("open it: no such disk")
        .context("serve");
    assert_eq!(Output::error(&error), "serve: open it: no such disk");
}

#[test]
fn wrong_use_is_exit_code_2_and_everything_else_1() {
    assert_eq!(exit_code(&wrong_use("no").context("import")), 2);
    assert_eq!(exit_code(&anyhow::anyhow!("refused")), 1);
}

#[test]
fn durability_is_a_level() {
    assert_eq!(durability("region"), Ok(Durability::Region));
    assert_eq!(durability("regions:2"), Ok(Durability::Regions(2)));
    assert_eq!(durability("all"), Ok(Durability::All));
    for unsound in ["", "regions", "regions:0", "regions:x", "region:2", "every"] {
        assert!(durability(unsound).is_err(), "{unsound}");
    }
}

/// The words of a line of shell, quotes taken off.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for character in line.chars() {
        match (quote, character) {
            (None, '\'' | '"') => quote = Some(character),
            (Some(open), _) if open == character => quote = None,
            (None, ' ') => words.push(std::mem::take(&mut word)),
            _ => word.push(character),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

#[test]
fn every_command_that_the_guides_show_is_one() {
    let guides = [
        include_str!("../../../README.md"),
        include_str!("../../../deploy/README.md"),
    ];
    let mut shown = 0;
    for guide in guides {
        let mut is_shell = false;
        for line in guide.lines() {
            if line.starts_with("```") {
                is_shell = line == "```sh";
            }
            if is_shell && line.starts_with("meridian ") {
                if let Err(error) = CommandLine::try_parse_from(words(line)) {
                    panic!("{line}\n{error}");
                }
                shown += 1;
            }
        }
    }
    assert!(shown > 12, "only {shown} commands were found");
}
