//! Asks for what is served over HTTP.

use std::process::Command;

/// Asks for a URL: status, content type and text, a line between each two.
const ASK: &str = "\
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={'Accept': sys.argv[2]})
try:
    answer = urllib.request.urlopen(request, timeout=30)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.headers['Content-Type'], answer.read().decode(), sep='\\n', end='')";

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status.
    pub status: u16,
    /// Of what type its text is.
    pub kind: String,
    /// The text.
    pub text: String,
}

/// Asks for a URL in the format that is accepted.
///
/// # Panics
/// If there is no answer.
pub fn ask(url: &str, accept: &str) -> Answer {
    try_ask(url, accept).unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// As [`ask`], and says why there is no answer.
///
/// # Errors
/// What Python says.
pub fn try_ask(url: &str, accept: &str) -> Result<Answer, String> {
    let output = Command::new("python3").args(["-c", ASK, url, accept]).output();
    let output = output.expect("`apt-get install -y python3`");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let said = String::from_utf8(output.stdout).expect("metrics are text");
    let mut parts = said.splitn(3, '\n').map(str::to_owned);
    let mut next = || parts.next().expect("three parts");
    Ok(Answer { status: next().parse().expect("a number"), kind: next(), text: next() })
}
