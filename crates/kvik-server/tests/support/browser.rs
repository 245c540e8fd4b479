//! A real browser: it opens a page, types, presses keys, and tells what it shows.
//!
//! Without chromium there is none, unless `KVIK_BROWSER=required` is set, as it is in continuous integration.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use super::chromium::chromium;

/// A page in chromium, driven through its DevTools protocol over its standard streams.
pub struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    calls: u64,
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Browser {
    /// A browser that shows `url`; `None` where there is none and none is asked for.
    pub fn open(url: &str, width: u32, height: u32) -> Option<Self> {
        // Chromium reads commands from descriptor 3 and answers on 4.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh", chromium()?])
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ])
            .args(["--hide-scrollbars", "--remote-debugging-pipe", "about:blank"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, from) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut browser = Self { process, to, from, session: None, calls: 0 };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = Some(session["sessionId"].as_str().unwrap().to_owned());
        browser.resize(width, height);
        browser.scheme("light");
        browser.call("Page.navigate", json!({"url": url}));
        browser.wait("document.readyState === 'complete' && location.protocol === 'http:'");
        Some(browser)
    }

    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut message = json!({"id": self.calls, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut answer = Vec::new();
            assert!(self.from.read_until(0, &mut answer).unwrap() > 0, "chromium ended");
            answer.pop();
            let mut answer: Value = serde_json::from_slice(&answer).unwrap();
            if answer["id"] == self.calls {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].take();
            }
        }
    }

    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    pub fn scheme(&mut self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features);
    }

    /// The value of an expression in the page.
    pub fn get(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let mut answer = self.call("Runtime.evaluate", asked);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].take()
    }

    pub fn text(&mut self, selector: &str) -> String {
        let text = self.get(&format!("document.querySelector({})?.textContent ?? ''", json!(selector)));
        text.as_str().unwrap().to_owned()
    }

    pub fn wait(&mut self, condition: &str) {
        let start = Instant::now();
        while self.get(&format!("Boolean({condition})")) != json!(true) {
            let shown = start.elapsed() > Duration::from_secs(30);
            assert!(!shown, "never: {condition}\n{}", self.text("body"));
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn press(&mut self, key: &str, code: u32, shift: bool) {
        let modifiers = if shift { 8 } else { 0 };
        let mut down = json!({"type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers});
        if key == "Enter" {
            down["text"] = json!("\r");
        }
        self.call("Input.dispatchKeyEvent", down.clone());
        down["type"] = json!("keyUp");
        down.as_object_mut().unwrap().remove("text");
        self.call("Input.dispatchKeyEvent", down);
    }

    pub fn enter(&mut self) {
        self.press("Enter", 13, false);
    }

    pub fn write(&mut self, text: &str) {
        self.call("Input.insertText", json!({"text": text}));
    }

    /// Writes and sends a message, and waits for the answer's end.
    pub fn ask(&mut self, text: &str) {
        self.get("document.getElementById('prompt').focus()");
        self.write(text);
        self.enter();
        self.wait("!document.getElementById('stop').hidden || document.querySelector('.assistant .info')");
        self.wait(
            "document.getElementById('stop').hidden && document.querySelector('article:last-child .info')",
        );
    }

    pub fn overflow(&mut self) -> Value {
        self.get("document.documentElement.scrollWidth - innerWidth")
    }

    /// Keeps what is shown as a picture of the book.
    pub fn picture(&mut self, name: &str) {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let bytes = BASE64_STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, &bytes).unwrap();
        assert!(bytes.len() < 150 << 10, "{name} has {} bytes", bytes.len());
    }
}
