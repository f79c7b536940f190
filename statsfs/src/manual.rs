//! The manual pages, the shells' completions and the version of a command, all from the definition of its command line.
//!
//! [`parse`] takes the place of [`Parser::parse`]. The command then has a subcommand more, which its help does not show:
//! `generate DIR` writes pages and completions below `DIR`, where man(1) and shells look for them if it is one like
//! `/usr/local/share`.
//!
//! A page has what its command's help has. The text after the options is made of paragraphs: one that begins with a
//! heading and a colon on a line of its own (`Examples:`) is a section, as is `Exit status: ...`; others describe. A
//! subcommand without examples has those of the command that begin with its name, and one without exit statuses those of the
//! command. Variables and files that a page speaks of are explained in it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::LazyLock;

use clap::{Arg, ArgGroup, ArgMatches, Command, Id, Parser, value_parser};
use clap_complete::{Shell, generate};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use thiserror::Error;

use self::text::{Section, sections};
use crate::host::{DEFAULT_MOUNT, DEFAULT_SOCKET, DEFAULT_STATE, SOCKET_VARIABLE, protocol, state};
use crate::{export, segment, snapshot};

mod text;

/// The subcommand that writes pages and completions.
const GENERATE: &str = "generate";
/// The section of the manual that the pages are in.
const SECTION: &str = "1";

/// A page or a completion could not be written.
#[derive(Debug, Error)]
#[error("{path} can not be written: {error}: name a directory below which you may write", path = path.display())]
struct WriteError {
    path: PathBuf,
    error: io::Error,
}

/// Variables of the environment that commands heed.
const VARIABLES: [(&str, &str); 3] = [
    (
        SOCKET_VARIABLE,
        "The socket of the host's server, unless --socket names one: processes publish to it, and the server is asked there.",
    ),
    (
        "XDG_RUNTIME_DIR",
        "Where statistics are looked for, and by an ordinary user's vmm demo mounted, in the directory statsfs, if they are \
         not at their usual place.",
    ),
    (
        "RUST_LOG",
        "What the server logs: error, warn, info (unless set), debug or trace, and more as the crate tracing-subscriber has \
         it (EnvFilter).",
    ),
];

/// Files that commands use unless told otherwise.
const FILES: [(&str, &str); 3] = [
    (DEFAULT_MOUNT, "The mount of all statistics of this host."),
    (DEFAULT_SOCKET, "The socket of the server, to which processes publish."),
    (DEFAULT_STATE, "What outlasts the server: totals of what is gone, and what was cleared."),
];

/// The version of this package, which all commands share, and of each format that others read or speak.
fn versions() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let mut text = format!(
            "{}\nsegment format {}\nsnapshot format {}\nschema format {}\nstate format {}\nprotocol {}",
            env!("CARGO_PKG_VERSION"),
            segment::layout::VERSION,
            snapshot::format::VERSION,
            export::schema::VERSION,
            state::VERSION,
            protocol::VERSION,
        );
        #[cfg(feature = "recording")]
        {
            text += &format!("\nrecording format {}", snapshot::recording::VERSION);
        }
        text
    });
    &TEXT
}

/// Parses this process's arguments. What makes no sense and what asks for help or the version ends the process, as with
/// [`Parser::parse`], and so does what asks for pages and completions, which are written then.
pub fn parse<C: Parser>() -> C {
    let mut command = flowing(C::command()).long_version(versions());
    let mut matches = command.clone().subcommand(generate_command()).get_matches();
    if let Some(asked) = matches.subcommand_matches(GENERATE) {
        let Err(error) = write(&command, directory(asked)) else { exit(0) };
        // One who can not be told finds the status all the same.
        let _ = writeln!(io::stderr(), "{}: {error}", command.get_name());
        exit(1);
    }
    C::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

/// With the text after the options in paragraphs of one line each, which are broken where the terminal ends, and not there and
/// where they are in the source as well.
fn flowing(command: Command) -> Command {
    let text = command.get_after_help().map(|text| text::flowing(&text.to_string()));
    let command = match text {
        Some(text) => command.after_help(text),
        None => command,
    };
    command.mut_subcommands(flowing)
}

/// A command without what its help does not show, as completions are made of it.
fn shown(command: &Command) -> Command {
    let is_hidden = |id: &Id| {
        command.get_arguments().any(|argument| argument.get_id() == id && argument.is_hide_set())
    };
    let group = |group: &ArgGroup| {
        let args: Vec<_> = group.get_args().filter(|id| !is_hidden(id)).cloned().collect();
        let (is_required, is_multiple) = (group.is_required_set(), group.clone().is_multiple());
        let id = group.get_id().clone();
        ArgGroup::new(id).args(args).required(is_required).multiple(is_multiple)
    };
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let subcommands = command.get_subcommands().filter(|command| !command.is_hide_set());
    let mut new = Command::new(command.get_name().to_owned())
        .args(arguments.cloned())
        .groups(command.get_groups().map(group))
        .subcommands(subcommands.map(shown));
    if let Some(version) = command.get_version() {
        new = new.version(version.to_owned());
    }
    if let Some(about) = command.get_about() {
        new = new.about(about.clone());
    }
    new
}

fn generate_command() -> Command {
    let about = "Write the manual pages and the completions of bash, zsh and fish below a directory such as /usr/local/share";
    let dir = Arg::new("DIR").required(true).value_parser(value_parser!(PathBuf));
    Command::new(GENERATE).about(about).hide(true).arg(dir)
}

fn directory(asked: &ArgMatches) -> &Path {
    asked.get_one::<PathBuf>("DIR").expect("it is required")
}

/// Writes all of a command.
fn write(command: &Command, directory: &Path) -> Result<(), WriteError> {
    let name = command.get_name().to_owned();
    let mut built = command.clone().disable_help_subcommand(true);
    built.build();
    for page in pages(&built) {
        put(
            directory,
            &format!("man/man{SECTION}/{}.{SECTION}", page.name),
            page.render().as_bytes(),
        )?;
    }
    for (shell, path) in [
        (Shell::Bash, format!("bash-completion/completions/{name}")),
        (Shell::Zsh, format!("zsh/site-functions/_{name}")),
        (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
    ] {
        let mut script = Vec::new();
        generate(shell, &mut shown(command), &name, &mut script);
        put(directory, &path, &script)?;
    }
    Ok(())
}

fn put(directory: &Path, path: &str, bytes: &[u8]) -> Result<(), WriteError> {
    let path = directory.join(path);
    let above = path.parent().expect("it is below one");
    let written = fs::create_dir_all(above).and_then(|()| fs::write(&path, bytes));
    written.map_err(|error| WriteError { path, error })
}

/// A page.
struct Page<'a> {
    /// As man(1) is asked for it.
    name: String,
    command: &'a Command,
    sections: Vec<Section>,
    version: &'a str,
    /// The other pages.
    see_also: Vec<String>,
}

/// The pages of a command and its subcommands. Those that help does not show have none.
fn pages(root: &Command) -> Vec<Page<'_>> {
    let shown = || root.get_subcommands().filter(|command| !command.is_hide_set());
    let name_of =
        |command: &Command| command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let names: Vec<_> = [root].into_iter().chain(shown()).map(name_of).collect();
    let of_root = sections(root);
    let page = |command: &'_ Command| {
        let own = sections(command);
        let has = |title: &str| own.iter().any(|section| section.title == title);
        let mut all = own.clone();
        if !has(text::EXAMPLES) {
            let begin = format!("{} {}", root.get_name(), command.get_name());
            all.extend(text::find(&of_root, text::EXAMPLES).and_then(|from| from.only(&begin)));
        }
        if !has(text::EXIT_STATUS) {
            all.extend(text::find(&of_root, text::EXIT_STATUS).cloned());
        }
        all
    };
    let version = root.get_version().unwrap_or_default();
    let all = [root].into_iter().chain(shown());
    all.map(|command| {
        let name = name_of(command);
        let sections = if std::ptr::eq(command, root) { of_root.clone() } else { page(command) };
        let see_also = names.iter().filter(|other| **other != name).cloned().collect();
        Page { name, command, sections, version, see_also }
    })
    .collect()
}

impl Page<'_> {
    fn render(&self) -> String {
        // An empty date would be left out, and what follows taken for it.
        let man = Man::new(self.command.clone())
            .date(" ")
            .section(SECTION)
            .source(format!("statsfs {}", self.version))
            .manual("statsfs");
        let mut bytes = Vec::new();
        let rendered = (|| {
            man.render_title(&mut bytes)?;
            man.render_name_section(&mut bytes)?;
            man.render_synopsis_section(&mut bytes)?;
            man.render_description_section(&mut bytes)?;
            self.of_title(text::DESCRIPTION).to_writer(&mut bytes)?;
            if self.command.get_subcommands().next().is_some() {
                man.render_subcommands_section(&mut bytes)?;
            }
            man.render_options_section(&mut bytes)?;
            self.rest().to_writer(&mut bytes)
        })();
        rendered.expect("memory takes everything");
        String::from_utf8(bytes).expect("help is text")
    }

    /// What is said under a title, without that.
    fn of_title(&self, title: &str) -> Roff {
        let mut roff = Roff::new();
        if let Some(section) = text::find(&self.sections, title) {
            section.blocks.iter().for_each(|block| block.write_to(&mut roff));
        }
        roff
    }

    /// All that follows the options.
    fn rest(&self) -> Roff {
        let mut roff = Roff::new();
        let last = [text::EXIT_STATUS, text::EXAMPLES];
        let own = self.sections.iter().map(|section| &*section.title);
        let own = own.filter(|title| *title != text::DESCRIPTION && !last.contains(title));
        for title in own.chain([text::EXIT_STATUS]) {
            self.section(title, &mut roff);
        }
        let help = self.help();
        for (title, entries) in [("ENVIRONMENT", &VARIABLES), ("FILES", &FILES)] {
            let spoken_of: Vec<_> =
                entries.iter().filter(|(name, _)| speaks_of(&help, name)).collect();
            if !spoken_of.is_empty() {
                roff.control("SH", [title]);
            }
            for (name, meaning) in spoken_of {
                roff.control("TP", []).text([bold(*name)]).text([roman(*meaning)]);
            }
        }
        self.section(text::EXAMPLES, &mut roff);
        roff.control("SH", ["SEE ALSO"]);
        let last = self.see_also.len().saturating_sub(1);
        for (n, other) in self.see_also.iter().enumerate() {
            let comma = if n == last { "" } else { "," };
            roff.text([bold(other), roman(format!("({SECTION}){comma}"))]);
        }
        roff
    }

    fn section(&self, title: &str, roff: &mut Roff) {
        if text::find(&self.sections, title).is_some() {
            roff.control("SH", [title]);
            roff.extend([self.of_title(title)]);
        }
    }

    /// All that its help says, with that of its subcommands.
    fn help(&self) -> String {
        let of = |command: &Command| command.clone().render_long_help().to_string();
        let subcommands = self.command.get_subcommands().map(of);
        subcommands.fold(of(self.command), |all, one| all + &one)
    }
}

/// Whether a text has a name, of a variable or of a file, and not as the beginning of another one.
fn speaks_of(text: &str, name: &str) -> bool {
    let goes_on = |next: char| next.is_alphanumeric() || next == '_';
    let goes_on_as_path = |rest: &str| match rest.strip_prefix(['.', '/']) {
        Some(rest) => name.starts_with('/') && rest.starts_with(goes_on),
        None => rest.starts_with(goes_on),
    };
    text.match_indices(name).any(|(at, _)| !goes_on_as_path(&text[at + name.len()..]))
}

#[cfg(test)]
mod tests {
    use super::speaks_of;

    #[test]
    fn names_are_found_but_within_others() {
        for (text, name, found) in [
            ("at /run/statsfs.", "/run/statsfs", true),
            ("/run/statsfs.sock", "/run/statsfs", false),
            ("/run/statsfs/kvm", "/run/statsfs", false),
            ("/run/statsfs/kvm, /run/statsfs", "/run/statsfs", true),
            ("$XDG_RUNTIME_DIR/statsfs", "XDG_RUNTIME_DIR", true),
            ("XDG_RUNTIME_DIRS", "XDG_RUNTIME_DIR", false),
        ] {
            assert_eq!(speaks_of(text, name), found, "{text}: {name}");
        }
    }
}
