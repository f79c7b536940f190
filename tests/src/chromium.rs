//! A browser without a window, driven over pipes by its DevTools protocol: Debian's package `chromium`.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::running::{PATIENCE, wait_until};
use crate::vmm::end_with_test;

/// A browser with one tab. It ends when it is dropped.
#[derive(Debug)]
pub struct Chromium {
    child: Child,
    to: ChildStdin,
    from: Receiver<Json>,
    session: Option<String>,
    calls: u64,
    /// What it told of by itself.
    events: Vec<Json>,
    profile: TempDir,
}

/// A place in the window.
pub type Point = (f64, f64);

impl Chromium {
    /// Starts one.
    ///
    /// # Panics
    /// If there is none, or it does not start.
    pub fn start() -> Self {
        let found = Command::new("chromium").arg("--version").stderr(Stdio::null()).output();
        assert!(
            found.is_ok_and(|output| output.status.success()),
            "a browser is needed: `apt-get install -y chromium`"
        );
        let profile = tempfile::Builder::new().prefix("statsfs-test-").tempdir().expect("a place");
        // It wants its pipes as descriptors 3 and 4.
        let mut command = Command::new("sh");
        command.args(["-c", "exec chromium \"$@\" 3<&0 4>&1 </dev/null >&2", "sh"]);
        // Its sandbox is not for root; the profile is this test's own.
        command.args(["--headless=new", "--no-sandbox", "--remote-debugging-pipe"]);
        command.args(["--disable-gpu", "--no-first-run", "--disable-background-networking"]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.env("HOME", profile.path());
        end_with_test(&mut command);
        let log = File::create(profile.path().join("log")).expect("a log");
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = child.spawn().expect("a shell");
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let (heard, messages) = channel();
        let from = BufReader::new(from.expect("a pipe"));
        thread::spawn(move || {
            for message in from.split(0).map_while(Result::ok) {
                let message = serde_json::from_slice(&message).expect("it speaks JSON");
                if heard.send(message).is_err() {
                    break;
                }
            }
        });
        let mut browser = Self {
            child,
            to: to.expect("a pipe"),
            from: messages,
            session: None,
            calls: 0,
            events: Vec::new(),
            profile,
        };
        let tab = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": tab["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Asks for something, and answers what it says.
    ///
    /// # Panics
    /// If it refuses.
    pub fn call(&mut self, method: &str, params: Json) -> Json {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        loop {
            let mut answer = self.next();
            if answer["id"] == self.calls {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].take();
            }
        }
    }

    fn next(&mut self) -> Json {
        let message = self.from.recv_timeout(PATIENCE);
        let message = message.unwrap_or_else(|error| panic!("{error}: {}", self.log()));
        if message["method"].is_string() {
            self.events.push(message.clone());
        }
        message
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.profile.path().join("log")).unwrap_or_default()
    }

    /// Opens a file, and waits until it is loaded.
    ///
    /// # Panics
    /// If it is not.
    pub fn open(&mut self, page: &Path) {
        self.events.clear();
        let url = format!("file://{}", page.display());
        let opened = self.call("Page.navigate", json!({"url": url}));
        assert!(opened["errorText"].is_null(), "{opened}");
        while self.events_of("Page.loadEventFired").is_empty() {
            self.next();
        }
    }

    /// What it told of a kind since a page was opened.
    pub fn events_of(&self, method: &str) -> Vec<&Json> {
        let of_kind = self.events.iter().filter(|event| event["method"] == method);
        of_kind.map(|event| &event["params"]).collect()
    }

    /// Asserts that the page threw nothing, complained of nothing, was forbidden nothing, and asked for nothing but itself.
    ///
    /// # Panics
    /// If it did.
    #[track_caller]
    pub fn assert_quiet(&mut self) {
        // What comes before this answer has come.
        self.eval("0");
        for kind in ["Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"] {
            let told = self.events_of(kind);
            assert!(told.is_empty(), "{kind}: {told:?}");
        }
        let requests = self.events_of("Network.requestWillBeSent");
        assert!(requests.len() == 1 && requests[0]["type"] == "Document", "{requests:?}");
        assert!(self.events_of("Page.javascriptDialogOpening").is_empty());
    }

    /// The value of an expression in the page.
    ///
    /// # Panics
    /// If it throws.
    #[track_caller]
    pub fn eval(&mut self, expression: &str) -> Json {
        let params = json!({"expression": expression, "returnByValue": true});
        let mut answer = self.call("Runtime.evaluate", params);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    /// The same, as text.
    ///
    /// # Panics
    /// If it is none.
    #[track_caller]
    pub fn text(&mut self, expression: &str) -> String {
        let value = self.eval(expression);
        value.as_str().unwrap_or_else(|| panic!("{expression} is {value}")).to_owned()
    }

    /// The same, as a number.
    ///
    /// # Panics
    /// If it is none.
    #[track_caller]
    pub fn number(&mut self, expression: &str) -> f64 {
        let value = self.eval(expression);
        value.as_f64().unwrap_or_else(|| panic!("{expression} is {value}"))
    }

    /// Brings the element of an expression into the window, and answers where it is then: left, top, width and height.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn place(&mut self, element: &str) -> [f64; 4] {
        let place = format!(
            "(() => {{ const e = {element}; e.scrollIntoView({{block: 'center', behavior: 'instant'}}); \
             const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; }})()"
        );
        let place = self.eval(&place);
        [0, 1, 2, 3].map(|n| place[n].as_f64().unwrap_or_else(|| panic!("{element}: {place}")))
    }

    /// Moves the pointer.
    pub fn point(&mut self, (x, y): Point) {
        let moved = json!({"type": "mouseMoved", "x": x, "y": y});
        self.call("Input.dispatchMouseEvent", moved);
    }

    /// Clicks at the middle of an element.
    #[track_caller]
    pub fn click(&mut self, element: &str) {
        let [left, top, width, height] = self.place(element);
        let (x, y) = (left + width / 2.0, top + height / 2.0);
        self.point((x, y));
        for kind in ["mousePressed", "mouseReleased"] {
            let click = json!({"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", click);
        }
    }

    /// Presses a key.
    pub fn press(&mut self, key: &str) {
        for kind in ["rawKeyDown", "keyUp"] {
            let press = json!({"type": kind, "key": key, "code": key});
            self.call("Input.dispatchKeyEvent", press);
        }
    }

    /// Makes the window so wide, and dark or light.
    pub fn look(&mut self, width: u32, height: u32, scheme: &str) {
        let window =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", window);
        let scheme = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", scheme);
        // Drawn anew.
        let frames = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))";
        let params = json!({"expression": frames, "awaitPromise": true});
        self.call("Runtime.evaluate", params);
    }

    /// What is seen of the page, as a PNG in base64.
    ///
    /// # Panics
    /// If nothing is.
    pub fn screenshot(&mut self) -> String {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"}));
        shot["data"].as_str().expect("a picture").to_owned()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // By itself it takes those with it that it started.
        let _ = self.to.write_all(b"{\"id\":0,\"method\":\"Browser.close\"}\0");
        if !thread::panicking() {
            wait_until("the browser ends", || self.child.try_wait().ok().flatten());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
