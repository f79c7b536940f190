//! The text after the options of a command's help, as sections of a page.

use clap::Command;
use clap_mangen::roff::{Inline, Roff, bold, roman};

/// What is said before there is a heading.
pub(super) const DESCRIPTION: &str = "DESCRIPTION";
pub(super) const EXAMPLES: &str = "EXAMPLES";
pub(super) const EXIT_STATUS: &str = "EXIT STATUS";

/// Of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub title: String,
    pub blocks: Vec<Block>,
}

/// Lines that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Text that flows.
    Paragraph(String),
    /// Terms, each with what it means, if that is said.
    List(Vec<(String, String)>),
    /// Lines as they are.
    Literal(Vec<String>),
}

/// The section of a title.
pub(super) fn find<'a>(sections: &'a [Section], title: &str) -> Option<&'a Section> {
    sections.iter().find(|section| section.title == title)
}

/// What a command's help says after its options.
pub(super) fn sections(command: &Command) -> Vec<Section> {
    let text = command.get_after_long_help().or_else(|| command.get_after_help());
    parse(&text.map(ToString::to_string).unwrap_or_default())
}

/// The same text with each run of lines that are not indented in one.
pub(super) fn flowing(text: &str) -> String {
    let mut flowing = String::new();
    let is_text = |line: &str| !line.is_empty() && !line.starts_with(' ');
    for (n, line) in text.lines().enumerate() {
        let is_after_text = text.lines().nth(n.wrapping_sub(1)).is_some_and(is_text);
        match n {
            0 => {}
            _ if is_text(line) && is_after_text => flowing.push(' '),
            _ => flowing.push('\n'),
        }
        flowing += line;
    }
    flowing
}

fn parse(text: &str) -> Vec<Section> {
    let mut all: Vec<Section> = Vec::new();
    for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
        let (title, body) = split_title(paragraph);
        let blocks = blocks(body);
        match all.iter_mut().find(|section| section.title == title) {
            Some(section) => section.blocks.extend(blocks),
            None => all.push(Section { title, blocks }),
        }
    }
    all
}

/// The title of a paragraph, and the rest of it.
fn split_title(paragraph: &str) -> (String, &str) {
    let first = paragraph.lines().next().unwrap_or_default();
    let is_title = |text: &str| text.chars().all(|c| c.is_ascii_alphabetic() || c == ' ');
    if let Some((title, body)) = paragraph.split_once(':') {
        let alone = first.strip_suffix(':') == Some(title) && is_title(title);
        if alone || title.eq_ignore_ascii_case(EXIT_STATUS) {
            return (title.to_uppercase(), body);
        }
    }
    (DESCRIPTION.into(), paragraph)
}

/// Lines that are indented are no part of a paragraph.
fn blocks(text: &str) -> Vec<Block> {
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let is_indented = |line: &str| line.starts_with("  ");
    let runs = lines.chunk_by(|one, other| is_indented(one) == is_indented(other));
    runs.map(|run| {
        if !is_indented(run[0]) {
            return Block::Paragraph(
                run.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "),
            );
        }
        list(run).unwrap_or_else(|| {
            Block::Literal(run.iter().map(|line| line[2..].trim_end().to_owned()).collect())
        })
    })
    .collect()
}

/// A list, if a line has two columns. What is indented more than a term goes on with what that means.
fn list(lines: &[&str]) -> Option<Block> {
    let columns = |line: &str| {
        let line = line.strip_prefix("  ").filter(|line| !line.starts_with(' '))?;
        let (term, meaning) = line.split_once("  ").unwrap_or((line, ""));
        Some((term.trim_end().to_owned(), meaning.trim().to_owned()))
    };
    let mut entries: Vec<(String, String)> = Vec::new();
    for line in lines {
        match (columns(line), entries.last_mut()) {
            (Some(entry), _) => entries.push(entry),
            (None, Some((_, meaning))) => {
                let space = if meaning.is_empty() { "" } else { " " };
                *meaning += &format!("{space}{}", line.trim());
            }
            (None, None) => return None,
        }
    }
    let has_two =
        lines.iter().any(|line| columns(line).is_some_and(|(_, meaning)| !meaning.is_empty()));
    has_two.then_some(Block::List(entries))
}

impl Section {
    /// With those entries of its lists, and those of its lines, that begin with this; nothing if there are none.
    pub fn only(&self, begin: &str) -> Option<Self> {
        let is_of = |text: &str| {
            text.strip_prefix(begin).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        let blocks = self.blocks.iter().filter_map(|block| match block {
            Block::Paragraph(_) => None,
            Block::List(entries) => {
                let of: Vec<_> = entries.iter().filter(|(term, _)| is_of(term)).cloned().collect();
                (!of.is_empty()).then_some(Block::List(of))
            }
            Block::Literal(lines) => {
                let of: Vec<_> = lines.iter().filter(|line| is_of(line)).cloned().collect();
                (!of.is_empty()).then_some(Block::Literal(of))
            }
        });
        let blocks: Vec<_> = blocks.collect();
        (!blocks.is_empty()).then(|| Self { title: self.title.clone(), blocks })
    }
}

/// Text in which what is between back quotes is bold.
fn inline(text: &str) -> Vec<Inline> {
    // Odd ones are between two of them; if the last has no end, it is none.
    let parts: Vec<_> = text.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return vec![roman(text)];
    }
    let part = |(n, part): (usize, &&str)| if n % 2 == 1 { bold(*part) } else { roman(*part) };
    parts.iter().enumerate().filter(|(_, part)| !part.is_empty()).map(part).collect()
}

impl Block {
    pub fn write_to(&self, roff: &mut Roff) {
        match self {
            Self::Paragraph(text) => {
                roff.control("PP", []).text(inline(text));
            }
            Self::List(entries) => {
                for (term, meaning) in entries {
                    roff.control("TP", []).text([bold(term)]);
                    if !meaning.is_empty() {
                        roff.text(inline(meaning));
                    }
                }
                // What follows is no part of the last meaning.
                roff.control("PP", []);
            }
            Self::Literal(lines) => {
                roff.control("RS", []).control("nf", []);
                lines.iter().for_each(|line| _ = roff.text([roman(line)]));
                roff.control("fi", []).control("RE", []);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_becomes_sections() {
        let text = "It does\nthis. So:\n  do it\n\nMore (of it): here.\n\nFormats:\n  a b  first\n       and on\n  c\n\
                    \nExit status: 0; 1.\n";
        let paragraph = |text: &str| Block::Paragraph(text.into());
        let entry = |term: &str, meaning: &str| (term.to_string(), meaning.to_string());
        let expected = [
            (
                DESCRIPTION,
                vec![
                    paragraph("It does this. So:"),
                    Block::Literal(vec!["do it".into()]),
                    paragraph("More (of it): here."),
                ],
            ),
            ("FORMATS", vec![Block::List(vec![entry("a b", "first and on"), entry("c", "")])]),
            (EXIT_STATUS, vec![paragraph("0; 1.")]),
        ];
        let expected = expected.map(|(title, blocks)| Section { title: title.into(), blocks });
        assert_eq!(parse(text), expected);
        assert_eq!(parse(""), []);
    }

    #[test]
    fn examples_are_taken_by_what_they_begin_with() {
        let all = parse("Examples:\n  x run  it runs\n  x runs  it is another\n  x run a\n  y run");
        let only = all[0].only("x run").unwrap();
        let entry = |term: &str, meaning: &str| (term.to_string(), meaning.to_string());
        assert_eq!(
            only.blocks,
            [Block::List(vec![entry("x run", "it runs"), entry("x run a", "")])]
        );
        assert_eq!(all[0].only("z"), None);
        assert_eq!(inline("a `b` c"), [roman("a "), bold("b"), roman(" c")]);
        assert_eq!(inline("a ` b"), [roman("a ` b")]);
    }
}
