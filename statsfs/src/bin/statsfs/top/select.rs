//! Which guests and which values are meant.

use std::str::FromStr;

use regex::{Regex, RegexBuilder};

use super::model::Row;

/// A pattern that names are compared with.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        RegexBuilder::new(text).case_insensitive(true).build().map(Self).map_err(|error| {
            // It draws a picture, of which the last line says what is wrong.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.trim_start_matches("error: ").to_owned()
        })
    }
}

impl Pattern {
    /// What is typed: until it is a regular expression it is taken as it is.
    pub fn typed(text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        text.parse().or_else(|_| regex::escape(text).parse()).ok()
    }

    pub fn is_in(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
}

/// Which guests are meant.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Guests {
    /// Only guests whose name this regular expression is found in
    #[arg(short, long, value_name = "REGEX")]
    pub guest: Option<Pattern>,
    /// Only guests of this process; may be given several times
    #[arg(short, long, value_name = "PID")]
    pub pid: Vec<u32>,
}

impl Guests {
    /// Whether all are meant.
    pub fn is_all(&self) -> bool {
        self.guest.is_none() && self.pid.is_empty()
    }

    pub fn is_meant(&self, row: &Row) -> bool {
        let is_name = self.guest.as_ref().is_none_or(|guest| guest.is_in(&row.name));
        let is_pid = self.pid.is_empty() || row.pid.is_some_and(|pid| self.pid.contains(&pid));
        is_name && is_pid
    }
}
