//! The microscope's page in a real browser: chromium opens it, moves its controls, and tells what it shows.
//!
//! Without chromium these tests pass over, unless `KVIK_BROWSER=required` is set, as it is in continuous integration.

#[path = "../../kvik-server/tests/support/chromium.rs"]
mod chromium;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use chromium::chromium;

/// Moves the slider, the selections and the arrow keys as a visitor does, and writes what the page then shows.
const VISIT: &str = r##"
<pre id="visit"></pre>
<script>
const shown = [];
const note = name => shown.push([name, $("when").textContent, $("head-title").textContent, $("head-summary").textContent,
  document.querySelectorAll("#text .gone").length, document.querySelectorAll("#text span").length,
  document.querySelectorAll("#text .answer").length].join("|"));
const fire = (id, type) => $(id).dispatchEvent(new Event(type));
note("opened");
$("moment").value = 3; fire("moment", "input"); note("slider");
$("layer").value = 7; $("head").value = 2; fire("layer", "change"); note("selected");
$("map").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowDown" })); note("arrow");
const box = $("map").getBoundingClientRect();
$("map").dispatchEvent(new MouseEvent("mousemove", { clientX: box.left + 1, clientY: box.top + 1 }));
shown.push("hover|" + $("hover").textContent);
shown.push("summary|" + $("summary").textContent);
shown.push("legend|" + $("legend").textContent);
const pixels = $("map").getContext("2d").getImageData(0, 0, $("map").width, $("map").height).data;
shown.push("colours|" + new Set(new Uint32Array(pixels.buffer)).size);
$("visit").textContent = "\n" + shown.join("\n") + "\n";
</script>
</body>"##;

/// A command that opens `page` and prints what became of it; `None` where there is no browser and none is asked for.
fn browser(page: &str) -> Option<Command> {
    let mut command = Command::new(chromium()?);
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=5000",
        "--dump-dom",
        page,
    ]);
    Some(command)
}

fn dom(mut browser: Command) -> String {
    let output = browser.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn kvik(args: &[&str]) -> Command {
    let home = std::env::var("KVIK_HOME")
        .unwrap_or_else(|_| concat!(env!("CARGO_TARGET_TMPDIR"), "/kvik").to_owned());
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvik"));
    command.arg("microscope").args(args).env("KVIK_HOME", home);
    command
}

const PIPELINE: &str = "snapkv(budget=40,window=8)+kivi(bits=2,residual=32)";

#[test]
fn a_browser_shows_what_the_heads_keep() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let page = folder.join("microscope.html");
    let Some(browser) = browser(&format!("file://{}", page.display())) else { return };
    let prompt = "The quick brown fox jumps over the lazy dog while the moon is rising. ".repeat(8);
    let output = kvik(&["--raw", &prompt, "--kv", PIPELINE, "-n", "5", "-o", page.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let html = fs::read_to_string(&page).unwrap();
    fs::write(&page, html.replace("</body>", VISIT)).unwrap();
    let dom = dom(browser);
    let shown = dom.split("<pre id=\"visit\">").nth(1).and_then(|rest| rest.split("</pre>").next()).unwrap();
    let line = |name: &str| {
        let found = shown.lines().find_map(|line| line.strip_prefix(&format!("{name}|")));
        found.unwrap_or_else(|| panic!("{name} is missing:\n{shown}")).split('|').collect::<Vec<_>>()
    };
    // When, which head, how many rows, tokens that are gone, tokens, tokens of the answer.
    let opened = line("opened");
    assert_eq!(opened[..2], ["after the prompt", "Layer 0, KV head 0"]);
    assert!(opened[2].starts_with("40 of "), "{opened:?}");
    let number = |text: &str| text.parse::<usize>().unwrap();
    assert_eq!(number(opened[3]) + 40, number(opened[4]), "{opened:?}");
    assert_eq!(opened[5], "0");
    let slider = line("slider");
    assert_eq!(slider[0], "after token 3");
    assert!(slider[2].starts_with("43 of "), "{slider:?}");
    assert_eq!((slider[3], slider[5]), (opened[3], "3"));
    assert_eq!(line("selected")[1], "Layer 7, KV head 2");
    assert_eq!(line("arrow")[1], "Layer 8, KV head 0");
    assert!(line("hover")[0].starts_with("layer 0, KV head 0, position 0"), "{shown}");
    assert!(line("summary")[0].contains("of all rows kept"), "{shown}");
    assert!(line("legend")[0].contains("keys affine(bits=2,group=32)"), "{shown}");
    assert!(number(line("colours")[0]) > 8, "{shown}");
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_browser_opens_the_page_that_is_served() {
    let mut server = Server(
        kvik(&["Why is the sky blue?", "-n", "2", "--serve", "127.0.0.1:0"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = BufReader::new(server.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address =
        lines.find_map(|line| Some(line.split_once("http://")?.1.split('/').next()?.to_owned())).unwrap();
    let Some(browser) = browser(&format!("http://{address}/")) else { return };
    let dom = dom(browser);
    assert!(
        dom.contains("after the prompt") && dom.contains("Layer 0, KV head 0"),
        "{}",
        &dom[..dom.len().min(2000)]
    );
}
