//! The pages in a real browser: chromium opens them, types, presses keys, and tells what they show.
//!
//! The API behind them is a small one of this file, so that answers are hostile, slow or refused on demand; where the figures are
//! to be true, it is a server's. Without chromium these tests pass over (`support/browser.rs`).
//!
//! The one that is ignored is for people: it takes the book's pictures of a server that runs, as docs/serving.md says.

mod support;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderMap, header},
    response::Response,
    routing::{get, post},
};
use futures_util::stream;
use kvik_server::pages::pages;
use serde_json::{Value, json};
use support::{browser::Browser, start};

// ---- the API behind the pages ----

const HOSTILE: &str = "<script>window.harmed = 1</script> <img src=x onerror=\"window.harmed = 2\"> \
    [a link](javascript:window.harmed=3) <a href=\"javascript:window.harmed=4\">b</a> <style>*{display:none}</style>\n\n\
    ```<b>\n</code></pre><script>window.harmed = 5</script>\n```\n\n- **<iframe srcdoc=\"<script>parent.harmed=6</script>\">**\n";
const ANSWER: &str = "A **cache** keeps *keys* and values:\n\n- one row for each token\n- for every layer and `KV head`\n\n\
    ```rust\nlet kept = cache.rows(layer);\n```\n\nSo 2 * 3 * 4 tokens stay as they are.";

#[derive(Default)]
struct Seen {
    bodies: Mutex<Vec<Value>>,
    key: Mutex<Option<String>>,
    left: AtomicBool,
    polls: AtomicU64,
}

/// Notes when the server lets go of an answer.
struct Leaving(Arc<Seen>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.left.store(true, Ordering::SeqCst);
    }
}

fn reply(status: u16, body: &Value) -> Response {
    let answer = Response::builder().status(status).header(header::CONTENT_TYPE, "application/json");
    answer.body(Body::from(body.to_string())).unwrap()
}

fn chunk(text: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
    )
}

fn answer(seen: &Arc<Seen>, headers: &HeaderMap, body: &str) -> Response {
    let body: Value = serde_json::from_str(body).unwrap();
    seen.bodies.lock().unwrap().push(body.clone());
    *seen.key.lock().unwrap() = headers.get("authorization").map(|key| key.to_str().unwrap().to_owned());
    if body["kv"].as_str().is_some_and(|kv| kv.contains("nothing")) {
        let message = "kv: there is no method 'nothing' (character 19)\n  snapkv(budget=512)+nothing\n                     ^";
        return reply(
            400,
            &json!({"error": {"message": message, "type": "invalid_request_error", "param": "kv"}}),
        );
    }
    let question =
        body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
    let endless = question.contains("endless");
    let text = if question.contains("hostile") { HOSTILE } else { ANSWER };
    // Pieces of a few characters, so that marks and events come torn.
    let letters: Vec<char> = text.chars().collect();
    let mut events: Vec<String> =
        letters.chunks(7).map(|piece| chunk(&piece.iter().collect::<String>())).collect();
    events.push(format!(
        ": waiting\n\ndata: {}\r\n\r\n",
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    ));
    let usage = json!({"prompt_tokens": 1534, "completion_tokens": 41, "prompt_tokens_details": {"cached_tokens": 1472}});
    events.push(format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [], "usage": usage})));
    let leaving = Leaving(Arc::clone(seen));
    let stream = stream::unfold((0, leaving), move |(at, leaving)| {
        let event = if endless { Some(chunk("more ")) } else { events.get(at).cloned() };
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Some((Ok::<_, Infallible>(Bytes::from(event?)), (at + 1, leaving)))
        }
    });
    let answer = Response::builder().header(header::CONTENT_TYPE, "text/event-stream");
    answer.body(Body::from_stream(stream)).unwrap()
}

/// `/v1/kv` of a server that works: its sums grow with each answer.
fn status(at: u64) -> Value {
    let wave = (at as f64 / 3.0).sin().mul_add(120.0, 150.0) as u64;
    let times = |p50: f64| json!({"count": 10 + at, "p50": p50, "p90": p50 * 1.6, "p99": p50 * 2.4, "max": p50 * 3.0});
    let pipeline = |text: &str, sequences: u64, mib: u64, of: u64| {
        json!({"pipeline": text, "sequences": sequences, "tokens": sequences * 900, "ram_bytes": mib << 20, "file_bytes": 0,
            "uncompressed_bf16_bytes": of << 20})
    };
    let node = |at: u64, id: u64, depth: u64, [tokens, end]: [u64; 2], children: u64| {
        json!({"id": id, "depth": depth, "tokens": tokens, "prefix_tokens": end, "bytes": tokens << 12, "hits": at, "locks": id % 2,
            "children": children, "last_used_seconds": 4990.0 + at as f64})
    };
    let methods = json!([
        {"name": "snapkv", "summary": "keeps what the prompt's end attends to", "parameters": [
            {"name": "budget", "kind": "a count", "default": "512", "about": "rows kept for each head"},
            {"name": "window", "kind": "a count", "default": "32", "about": "tokens that vote"}]},
        {"name": "kivi", "summary": "few bits", "parameters": [
            {"name": "bits", "kind": "2 or 4", "default": "2", "about": "bits of a number"}]},
    ]);
    let service = json!({
        "healthy": true, "failure": null, "draining": false, "uptime_seconds": 5000.0 + at as f64, "running": 8, "waiting": 3 + at % 5,
        "owners": [{"owner": "<b>team</b>", "running": 8, "waiting": 3, "served_tokens": 91234 + at}],
        "last_step": {"sequences": 8, "decode_tokens": 7 + at % 2, "prefill_tokens": wave, "replay_tokens": 0},
        "kv": {"budget_bytes": 2_147_483_648_u64, "ram_bytes": 734_003_200 + (at << 20), "file_bytes": 1 << 20,
            "encodings": [{"encoding": "bf16", "ram_bytes": 524_288_000, "file_bytes": 0},
                {"encoding": "affine-4-bits", "ram_bytes": 209_715_200 + (at << 20), "file_bytes": 1 << 20}],
            "pipelines": [pipeline("full", 5, 202, 202), pipeline("snapkv(budget=512)+kivi(bits=4)", 3, 24, 121)]},
        "prefixes": {"requests": 900, "hits": 801, "prompt_tokens": 1_000_000, "hit_tokens": 734_000, "nodes": 96, "tokens": 20480,
            "bytes": 471_859_200, "disk": {"files": 41, "bytes": 209_715_200, "max_bytes": 1_073_741_824, "written": 41, "read": 12,
            "failed": 0, "skipped": 1, "damaged": 0}},
        "prefix_trees": [{"shared_by_all": false, "owner": "<i>team</i>", "children": 2, "nodes": [
            node(at, 3, 0, [512, 512], 40), node(at, 4, 1, [64, 576], 0), node(at, 9, 1, [128, 640], 0), node(at, 5, 0, [64, 64], 0)]}],
        "totals": {"requests": 911, "overloaded": 2, "finished": 895, "failed": 0, "cancelled": 5, "overdue": 0, "preemptions": 4,
            "steps": 20_000 + at * 20, "prompt_tokens": 266_000 + at * 180 + wave / 4, "cached_tokens": 734_000, "completion_tokens": 88_000 + at * 140},
        "step_seconds": times(0.051), "inter_token_seconds": times(0.055), "time_to_first_token_seconds": times(0.24), "queue_seconds": times(0.03),
    });
    json!({"model": "smollm2-135m", "pipeline": "full", "prefix_sharing": "all", "service": service, "methods": methods})
}

/// Serves pages and API until the process ends.
fn serve() -> (SocketAddr, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let (asked, polled) = (Arc::clone(&seen), Arc::clone(&seen));
    let models = json!({"object": "list", "data": [{"id": "smollm2-135m"}, {"id": "<i>other</i>"}]});
    let app: Router = pages()
        .route("/v1/models", get(move || async move { reply(200, &models) }))
        .route(
            "/v1/kv",
            get(move || async move { reply(200, &status(polled.polls.fetch_add(1, Ordering::SeqCst))) }),
        )
        .route(
            "/v1/chat/completions",
            post(move |headers: HeaderMap, body: String| async move { answer(&asked, &headers, &body) }),
        );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap()
        });
    });
    (address, seen)
}

const LAST: &str = "article.assistant:last-child";

// ---- the tests ----

#[test]
fn an_answer_streams_and_tells_what_it_took() {
    let (address, seen) = serve();
    let Some(mut page) = Browser::open(&format!("http://{address}/"), 1200, 800) else { return };
    page.wait("document.getElementById('model').options.length === 2");
    assert_eq!(page.get("document.activeElement.id"), "prompt");
    page.get("watched = new Set(); new MutationObserver(() => watched.add(document.querySelector('[aria-busy] .content')?.textContent.length)).observe(document.getElementById('log'), { childList: true, subtree: true }); 0");
    page.write("What is a KV cache");
    page.press("Enter", 13, true);
    assert!(seen.bodies.lock().unwrap().is_empty(), "Shift+Enter has sent");
    page.ask("good for?");
    assert!(page.get("watched.size").as_u64().unwrap() > 4, "the answer did not come bit by bit");
    assert_eq!(
        seen.bodies.lock().unwrap()[0]["messages"][0]["content"].as_str().unwrap().replace('\n', "|"),
        "What is a KV cache|good for?"
    );
    let shape = "[...document.querySelectorAll('.assistant .content *')].map(one => one.localName).join(' ')";
    let shape = page.get(shape).as_str().unwrap().to_owned();
    assert_eq!(shape, "p strong em ul li li code div div span button pre code p");
    assert!(page.text(LAST).contains("So 2 * 3 * 4 tokens stay"));
    let info = page.text(".assistant .info");
    assert!(
        info.starts_with("41 tokens · ")
            && info.contains(" tokens/s · prompt 1,534 tokens, 1,472 cached · first after "),
        "{info}"
    );

    // Again, then with the question edited: the conversation does not grow.
    page.get("[...document.querySelectorAll('.assistant button')].find(one => one.textContent === 'Regenerate').click()");
    page.wait("document.querySelector('[aria-busy]')");
    page.wait("document.querySelector('.assistant .info')");
    page.get(
        "[...document.querySelectorAll('.user button')].find(one => one.textContent === 'Edit').click()",
    );
    page.get("document.getElementById('prompt').select()");
    page.ask("And a prefix?");
    assert_eq!(page.get("document.querySelectorAll('article').length"), 2);
    assert_eq!(
        seen.bodies.lock().unwrap()[2]["messages"],
        json!([{"role": "user", "content": "And a prefix?"}])
    );
    // It is there when the page is opened again.
    page.call("Page.reload", json!({}));
    page.wait("document.readyState === 'complete' && document.querySelector('.user .content')?.textContent === 'And a prefix?'");
}

#[test]
fn what_a_model_writes_is_text_and_runs_nothing() {
    let (address, _) = serve();
    let Some(mut page) = Browser::open(&format!("http://{address}/"), 1200, 800) else { return };
    page.wait("document.getElementById('model').options.length === 2");
    page.ask("hostile <img src=x onerror=\"window.harmed = 7\"><script>window.harmed = 8</script>");
    page.call("Page.reload", json!({}));
    page.wait("document.readyState === 'complete' && document.querySelector('.assistant .info')");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(page.get("typeof window.harmed"), "undefined");
    let foreign = "document.querySelectorAll('main script, main img, main a, main iframe, main style, aside img, aside a, aside script').length";
    assert_eq!(page.get(foreign), 0);
    let shown = page.text(LAST);
    for text in [
        "<script>window.harmed = 1</script>",
        "onerror=\"window.harmed = 2\"",
        "[a link](javascript:window.harmed=3)",
        "</code></pre><script>",
        "<iframe srcdoc=",
    ] {
        assert!(shown.contains(text), "{text} is not in {shown}");
    }
    // And if a script of the page were careless, the browser would refuse.
    let refused = page.get("(() => { try { document.body.innerHTML = '<b>x</b>'; return 'done' } catch (error) { return error.name } })()");
    assert_eq!(refused, "TypeError");
    page.get("(() => { const one = document.createElement('a'); one.href = 'javascript:window.harmed=9'; document.body.append(one); one.click(); })()");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(page.get("typeof window.harmed"), "undefined");
}

#[test]
fn the_keyboard_does_it_all() {
    let (address, seen) = serve();
    let Some(mut page) = Browser::open(&format!("http://{address}/"), 1200, 800) else { return };
    page.wait("document.getElementById('kv').placeholder === 'full'");
    // Esc stops, and the server is left.
    page.write("endless");
    page.enter();
    page.wait("document.querySelector('[aria-busy] .content')?.textContent.includes('more more')");
    page.press("Escape", 27, false);
    page.wait("document.querySelector('.assistant .info')?.textContent.includes('stopped')");
    let start = Instant::now();
    while !seen.left.load(Ordering::SeqCst) {
        assert!(start.elapsed() < Duration::from_secs(10), "the request goes on after Esc");
        std::thread::sleep(Duration::from_millis(20));
    }
    // So does the button.
    page.write("endless");
    page.enter();
    page.wait("document.querySelectorAll('article').length === 4 && !document.getElementById('stop').hidden");
    page.wait("document.querySelector('[aria-busy] .content')?.textContent.includes('more more')");
    page.get("document.getElementById('stop').click()");
    page.wait("document.getElementById('stop').hidden");
    // Tab goes from the top through what there is, and shows where it is.
    page.get("document.activeElement.blur(); document.querySelector('.skip').focus()");
    let mut order = Vec::new();
    for _ in 0..22 {
        page.press("Tab", 9, false);
        let at = page.get("document.activeElement.id || document.activeElement.textContent");
        assert_ne!(page.get("getComputedStyle(document.activeElement).outlineStyle"), "none", "{at}");
        order.push(at.as_str().unwrap().to_owned());
    }
    let place = |name: &str| {
        order.iter().position(|at| at == name).unwrap_or_else(|| panic!("{name} is not in {order:?}"))
    };
    let way = [
        "Chat",
        "Dashboard",
        "theme",
        "new",
        "model",
        "kv",
        "system",
        "temperature",
        "top_p",
        "max_tokens",
        "seed",
        "key",
    ];
    assert!(way.windows(2).all(|pair| place(pair[0]) < place(pair[1])), "{order:?}");

    // Suggestions: a method, its parameter, and what else there is.
    page.get("document.getElementById('kv').focus()");
    page.write("snap");
    page.press("ArrowDown", 40, false);
    assert_eq!(
        page.get("document.getElementById('kv').getAttribute('aria-activedescendant')"),
        "kv-option-0"
    );
    page.enter();
    page.write("(bud");
    page.press("ArrowDown", 40, false);
    page.enter();
    assert_eq!(page.get("document.getElementById('kv').value"), "snapkv(budget=");
    page.write("512)+nothing");
    // What is wrong is shown where it is, and what was typed is not lost.
    page.get("document.getElementById('prompt').focus()");
    page.write("Why?");
    page.enter();
    page.wait("!document.getElementById('kv-error').hidden");
    assert!(page.text("#kv-error").contains("\n                     ^"));
    let there = "[document.activeElement.id, document.activeElement.selectionStart, document.getElementById('prompt').value]";
    assert_eq!(page.get(there), json!(["kv", 19, "Why?"]));
    assert_eq!(page.get("document.querySelectorAll('article').length"), 4);
    // The key is for this tab only.
    page.get("document.getElementById('key').focus()");
    page.write("secret-1");
    page.get("document.getElementById('kv').value = ''; document.getElementById('prompt').focus(); document.getElementById('prompt').select()");
    page.write("Why, then?");
    page.enter();
    page.wait("document.querySelectorAll('article').length === 6 && document.getElementById('stop').hidden");
    assert_eq!(seen.key.lock().unwrap().as_deref(), Some("Bearer secret-1"));
    assert_eq!(page.get("JSON.stringify(localStorage).includes('secret-1')"), false);
}

#[test]
fn the_dashboard_shows_numbers_that_move() {
    let (address, _) = serve();
    let Some(mut page) = Browser::open(&format!("http://{address}/dashboard"), 1200, 1180) else { return };
    page.wait("document.querySelector('#tile-running span')?.textContent === '8'");
    assert_eq!(page.text("#tile-prefix span"), "73 %");
    assert!(page.text("#state").starts_with("smollm2-135m · up · "), "{}", page.text("#state"));
    let latency = page.text("#latency");
    assert!(latency.contains("Time to first token240 ms384 ms576 ms720 ms"), "{latency}");
    let pipelines = page.text("#pipelines");
    assert!(pipelines.contains("snapkv(budget=512)+kivi(bits=4)32,70024.0 MiB0 B20 %"), "{pipelines}");
    assert!(page.text("#owners").contains("<b>team</b>"));
    let encodings = page.text("#encodings tbody");
    assert!(encodings.contains("bf16500 MiB0 B") && encodings.contains(" MiB1.0 MiBall"), "{encodings}");
    assert!(page.text("#prefixes").contains("801 of 900") && page.text("#totals").contains("Steps2"));
    let memory = page.text("#tile-memory span");
    let polls: u32 = 3;
    let steps = "Number(document.querySelector('#totals tr:nth-child(7) td:last-child').textContent.replace(',', ''))";
    let start = Instant::now();
    while page.get(steps).as_f64().unwrap() < f64::from(20_000 + 20 * polls) {
        assert!(start.elapsed() < Duration::from_secs(30 + 2 * u64::from(polls)), "{}", page.text("#totals"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_ne!(page.text("#tile-memory span"), memory);
    let rate: f64 = page.text("#tile-generated span").replace(',', "").parse().unwrap();
    assert!(rate > 10.0 && rate < 1000.0, "{rate}");
    let bars = page.get("document.querySelector('#batch path.c0').getAttribute('d').split('M').length - 1");
    assert!(bars.as_u64().unwrap() >= 2, "{bars}");
}

#[test]
fn the_prefix_tree_folds_by_keyboard_and_stays_folded() {
    let (address, _) = serve();
    let Some(mut page) = Browser::open(&format!("http://{address}/dashboard"), 1200, 1180) else { return };
    page.wait("document.querySelectorAll('#tree li').length === 5");
    // A name is text, whatever it says.
    assert_eq!(page.text("#tree h3"), "<i>team</i>");
    let first = page.text("#tree summary");
    assert!(first.starts_with("512 tokens, to 512 · 2.0 MiB · ") && first.contains(" hit"), "{first}");
    assert!(first.ends_with(" · used 10.0 s ago · 40 children · in use by 1"), "{first}");
    assert_eq!(page.text("#tree li li.note"), "38 more, used longer ago");
    // Where in a prompt of 640 tokens the second child stands.
    let place = page.get("(() => { const { marginLeft, width } = document.querySelectorAll('#tree .span i')[2].style; return marginLeft + ' ' + width })()");
    assert_eq!(place, "80% 20%");
    page.get("document.querySelector('#tree summary').focus()");
    assert_ne!(page.get("getComputedStyle(document.activeElement).outlineStyle"), "none");
    page.enter();
    page.wait("!document.querySelector('#tree details').open");
    let polled = format!("document.querySelector('#tree summary').textContent !== {}", json!(first));
    page.wait(&polled);
    assert_eq!(page.get("document.querySelector('#tree details').open"), false);
    assert_eq!(page.get("document.activeElement.localName"), "summary");
    page.enter();
    page.wait("document.querySelector('#tree details').open");
}

#[test]
fn a_prefix_that_two_requests_share_shows_with_its_memory() {
    let server = start("kv = \"kivi(bits=4,group=16,residual=16)\"");
    let address = server.address;
    let Some(mut page) = Browser::open(&format!("http://{address}/dashboard"), 1200, 1180) else { return };
    page.wait("document.querySelector('#tree .note')?.textContent === 'No prompt has left a prefix yet.'");
    for end in ["c", "d"] {
        let prompt = format!("{}{}", "ab".repeat(64), end.repeat(64));
        server.client().post("/v1/completions", &json!({"prompt": prompt, "max_tokens": 2})).ok();
    }
    page.wait("document.querySelectorAll('#tree li').length === 3");
    assert_eq!(page.text("#tree h3"), "Requests without a key");
    let shared = page.text("#tree summary");
    assert!(shared.starts_with("128 tokens, to 128 · ") && shared.contains(" · 2 children"), "{shared}");
    let ends = page
        .get("[...document.querySelectorAll('#tree .leaf')].map(leaf => leaf.textContent.split(' · ')[0])");
    assert_eq!(ends, json!(["64 tokens, to 192", "64 tokens, to 192"]));
    // While an answer goes on, its rows are codes; the prefixes are not.
    let long =
        json!({"prompt": "ab".repeat(100), "max_tokens": 1800, "ignore_eos": true, "stream": true, "n": 48});
    let answer = server.client().open("POST", "/v1/completions", long.to_string().as_bytes());
    page.wait("document.querySelector('#encodings')?.textContent.includes('affine-4-bits')");
    let rows = "[...document.querySelectorAll('#encodings tbody tr')].map(row => row.cells[0].textContent)";
    assert_eq!(page.get(rows), json!(["bf16", "affine-4-bits", "all"]));
    drop(answer);
}

#[test]
fn pages_fit_a_phone_and_the_dark() {
    let (address, _) = serve();
    let Some(mut page) = Browser::open(&format!("http://{address}/"), 360, 640) else { return };
    page.wait("document.getElementById('model').options.length === 2");
    page.ask(&format!("A long word: {}", "x".repeat(300)));
    assert_eq!(page.overflow(), 0);
    assert_eq!(
        page.get("document.getElementById('composer').getBoundingClientRect().bottom <= innerHeight"),
        true
    );
    assert!(page.get("document.getElementById('log').clientHeight").as_f64().unwrap() > 200.0);
    page.get("document.getElementById('settings').open = true");
    assert_eq!(page.overflow(), 0);
    let colour = "getComputedStyle(document.body).backgroundColor";
    assert_eq!(page.get(colour), "rgb(255, 255, 255)");
    page.scheme("dark");
    page.wait(&format!("{colour} === 'rgb(22, 24, 28)'"));
    // A choice stands against the system's, and on the next page as well.
    page.get("document.getElementById('theme').click()");
    assert_eq!(page.get(colour), "rgb(255, 255, 255)");
    page.call("Page.navigate", json!({"url": format!("http://{address}/dashboard")}));
    page.wait("location.pathname === '/dashboard' && document.querySelector('#tile-running span')");
    assert_eq!(page.get(colour), "rgb(255, 255, 255)");
    page.wait("document.querySelector('#tree li')");
    assert_eq!(page.overflow(), 0);
}

#[test]
#[ignore = "takes the pictures of docs/serving.md, which says how"]
fn a_running_server_has_its_picture_taken() {
    let server = std::env::var("KVIK_SERVER").expect("KVIK_SERVER is the address of a running server");
    let Some(mut page) = Browser::open(&format!("{server}/"), 1200, 800) else { return };
    page.wait("document.getElementById('model').options.length > 0");
    page.ask("What is a KV cache good for?");
    assert!(page.text(".assistant .info").contains("tokens/s"), "{}", page.text(".assistant"));
    page.picture("serving-chat.png");
    page.resize(1200, 1180);
    page.call("Page.navigate", json!({"url": format!("{server}/dashboard")}));
    page.wait("location.pathname === '/dashboard' && document.querySelector('#tile-running span')");
    std::thread::sleep(Duration::from_secs(60));
    assert!(
        page.get("document.getElementById('problem').hidden") == json!(true),
        "{}",
        page.text("#problem")
    );
    page.picture("serving-dashboard.png");
}
