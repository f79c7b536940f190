//! `statsfs status`.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use statsfs::host::server::{ClientState, Status};
use statsfs::host::{PublishOptions, ask_status};
use statsfs::tools::{plain, say};

use crate::common::EXIT_STATUS;

/// What to say.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_STATUS)]
pub struct Args {
    /// The server's socket [default: what STATSFS_SOCKET says, or else /run/statsfs.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let socket = PublishOptions { socket: args.socket.clone(), ..Default::default() }.socket();
    let text = ask_status(&socket, TIMEOUT)?;
    if args.json {
        say(&(text + "\n"))?;
        return Ok(());
    }
    let status: Status = serde_json::from_str(&text)?;
    say(&Text(&status).to_string())?;
    Ok(())
}

/// For people.
struct Text<'a>(&'a Status);

fn time(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

impl std::fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let status = self.0;
        writeln!(f, "server   process {}, for {}", status.pid, time(status.uptime_seconds))?;
        writeln!(f, "mount    {}", status.mount.display())?;
        writeln!(f, "socket   {}", status.socket.display())?;
        writeln!(f, "state    {}", status.state.display())?;
        if status.clients.is_empty() {
            writeln!(f, "\nNobody publishes.")?;
        } else {
            writeln!(
                f,
                "\n{:>8} {:>8} {:<10} {:>8} {:>9} {:>9} {:>8} {:>8}",
                "PID", "UID", "STATE", "FOR", "SEGMENTS", "KIB", "SOURCES", "KVM FDS"
            )?;
        }
        for client in &status.clients {
            let state = match client.state {
                ClientState::Joining => "joining",
                ClientState::Published => "published",
                ClientState::Awaited => "awaited",
                ClientState::Lost => "lost",
                ClientState::Leaving => "leaving",
            };
            writeln!(
                f,
                "{:>8} {:>8} {:<10} {:>8} {:>9} {:>9} {:>8} {:>8}",
                client.pid,
                client.uid,
                state,
                time(client.seconds),
                client.has.segments,
                client.has.bytes >> 10,
                client.has.sources,
                client.has.descriptors
            )?;
        }
        if !status.refused.is_empty() {
            writeln!(f, "\nRefused, the last one last:")?;
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        for refused in &status.refused {
            let ago = time(now.saturating_sub(refused.at));
            let uid = if refused.uid == u32::MAX { "?".into() } else { refused.uid.to_string() };
            writeln!(
                f,
                "{ago:>8} ago  process {}, user {uid}: {}",
                refused.pid,
                plain(&refused.text)
            )?;
        }
        Ok(())
    }
}
