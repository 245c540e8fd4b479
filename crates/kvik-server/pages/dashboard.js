// The dashboard: asks /v1/kv each second and draws what the service says of itself. A field that is missing is left out.

import { getJson, key } from "./api.js";
import { shares, table, timeChart } from "./charts.js";
import { $, bytes, count, duration, make } from "./dom.js";
import { prefixTrees } from "./prefixes.js";

const MOST = 120; // Seconds that charts reach back.
const VISIBLE_MS = 1000, HIDDEN_MS = 15000, FAILED_MS = 5000;

const history = []; // One entry for each second in which there was an answer.
let last = null; // The latest totals, and when.
let timer = 0;

async function poll() {
  clearTimeout(timer);
  let wait = VISIBLE_MS;
  try {
    const report = await getJson("/v1/kv", AbortSignal.timeout(10_000));
    show(report, report.service ?? report);
    $("problem").hidden = true;
    $("unlock").hidden = true;
  } catch (error) {
    wait = FAILED_MS;
    $("state").textContent = "no answer";
    $("state").classList.add("bad");
    $("problem").textContent = error.status === 401 && !key.get() ? "This server wants an API key."
      : error.status ? error.message : "The server does not answer. Trying again every few seconds.";
    $("problem").hidden = false;
    $("unlock").hidden = error.status !== 401;
    history.length = 0;
    last = null;
  }
  clearTimeout(timer);
  timer = setTimeout(poll, document.hidden ? HIDDEN_MS : wait);
}

function show(report, service) {
  const now = performance.now(), totals = service.totals ?? {}, step = service.last_step ?? {};
  const kv = service.kv ?? {}, prefixes = service.prefixes ?? {};
  // Counters that fell are those of another process.
  if (last && (totals.steps ?? 0) < (last.totals.steps ?? 0)) { history.length = 0; last = null; }
  const rate = name => (last ? Math.max(0, (totals[name] ?? 0) - (last.totals[name] ?? 0)) / ((now - last.at) / 1000) : null);
  const stepped = last !== null && totals.steps !== last.totals.steps;
  const busy = stepped || (last === null && (service.running ?? 0) > 0);
  history.push({
    decode: busy ? step.decode_tokens ?? 0 : 0, prefill: busy ? step.prefill_tokens ?? 0 : 0,
    replay: busy ? step.replay_tokens ?? 0 : 0,
    generated: rate("completion_tokens"), read: rate("prompt_tokens"),
    running: service.running ?? 0, waiting: service.waiting ?? 0,
  });
  history.splice(0, history.length - MOST);
  last = { at: now, totals };
  const values = name => history.map(entry => entry[name]);

  const failed = service.healthy === false;
  $("state").textContent = failed ? `failed: ${service.failure ?? "see the log"}`
    : [report.model, service.draining ? "draining" : "up", duration(service.uptime_seconds)].filter(Boolean).join(" · ");
  $("state").classList.toggle("bad", failed);
  const hits = prefixes.prompt_tokens > 0 ? `${Math.round(100 * prefixes.hit_tokens / prefixes.prompt_tokens)} %` : "–";
  const speed = history.at(-1);
  tiles({
    running: ["Running", count(service.running), `${count(step.sequences)} in the last step`],
    waiting: ["Waiting", count(service.waiting), `${count(totals.overloaded)} turned away so far`],
    generated: ["Generated", speed.generated === null ? "–" : count(Math.round(speed.generated)), "tokens per second"],
    read: ["Prompts", speed.read === null ? "–" : count(Math.round(speed.read)), "tokens per second"],
    memory: ["KV in RAM", bytes(kv.ram_bytes), kv.budget_bytes ? `of ${bytes(kv.budget_bytes)}` : ""],
    prefix: ["Prefix hits", hits, "of prompt tokens"],
    preemptions: ["Preemptions", count(totals.preemptions), "since the start"],
  });

  const options = { most: MOST };
  timeChart($("batch"), [
    { name: "decode", values: values("decode") }, { name: "prefill", values: values("prefill") },
    { name: "recomputed", values: values("replay") },
  ], { ...options, stacked: true, label: "Tokens of a step" });
  timeChart($("throughput"), [
    { name: "generated", values: values("generated") }, { name: "prompts read", values: values("read") },
  ], { ...options, label: "Tokens per second" });
  timeChart($("requests"), [
    { name: "running", values: values("running") }, { name: "waiting", values: values("waiting") },
  ], { ...options, label: "Requests" });

  const times = [
    ["Time to first token", service.time_to_first_token_seconds], ["Between tokens", service.inter_token_seconds],
    ["In the queue", service.queue_seconds], ["Step", service.step_seconds],
  ].filter(([, one]) => one);
  const at = (one, name) => (one.count ? duration(one[name]) : "–");
  $("latency").replaceChildren(table(
    [["of the latest", false], ["p50", true], ["p90", true], ["p99", true], ["max", true]],
    times.map(([name, one]) => [name, ...["p50", "p90", "p99", "max"].map(rank => at(one, rank))])));

  memory(kv, prefixes);
  encodings(kv);
  pipelines(kv.pipelines ?? [], report);
  prefixTrees($("tree"), service);
  prefixSums(prefixes, report);
  $("totals").replaceChildren(table([["", false], ["", true]], [
    ["Requests accepted", totals.requests], ["Finished", totals.finished], ["Failed", totals.failed],
    ["Cancelled by the client", totals.cancelled], ["Over their deadline", totals.overdue],
    ["Turned away, overloaded", totals.overloaded], ["Steps", totals.steps],
    ["Prompt tokens computed", totals.prompt_tokens], ["Prompt tokens cached", totals.cached_tokens],
    ["Tokens generated", totals.completion_tokens],
  ].filter(([, value]) => value !== undefined).map(([name, value]) => [name, count(value)])));
  const owners = service.owners ?? [];
  $("owners-card").hidden = owners.length === 0;
  $("owners").replaceChildren(table(
    [["Key", false], ["Running", true], ["Waiting", true], ["Tokens served", true]],
    owners.map(one => [one.owner ?? "(no key)", count(one.running), count(one.waiting), count(one.served_tokens)])));
}

function tiles(all) {
  for (const [id, [name, value, note]] of Object.entries(all)) {
    let tile = $(`tile-${id}`);
    if (!tile) {
      tile = make("div", { id: `tile-${id}` }, make("dt", {}, name), make("dd", {}, make("span", {}), make("small", {})));
      $("tiles").append(tile);
    }
    tile.querySelector("span").textContent = value;
    tile.querySelector("small").textContent = note;
  }
}

function memory(kv, prefixes) {
  const sum = name => (kv.pipelines ?? []).reduce((total, one) => total + (one[name] ?? 0), 0);
  const running = Math.min(kv.ram_bytes ?? 0, sum("ram_bytes"));
  const rest = (kv.ram_bytes ?? 0) - running;
  const part = (name, value) => ({ name, value, shown: bytes(value) });
  const ram = [part("RAM, being computed", running), part("RAM, kept prefixes and other", rest)];
  const whole = kv.budget_bytes || kv.ram_bytes || 1;
  $("memory").replaceChildren(shares(ram, whole), make("p", { class: "note" }, [
    kv.budget_bytes ? `The whole bar is the budget of ${bytes(kv.budget_bytes)}.` : "",
    `Files of running requests: ${bytes(kv.file_bytes)}.`,
    prefixes.disk ? `Prefixes on disk: ${bytes(prefixes.disk.bytes)} of ${bytes(prefixes.disk.max_bytes)}.` : "",
  ].filter(Boolean).join(" ")));
}

/** RAM as a bar of encodings, and all places as a table. */
function encodings(kv) {
  const all = kv.encodings ?? [];
  if (!all.length) {
    $("encodings").replaceChildren(make("p", { class: "note" }, "Nothing is cached."));
    return;
  }
  const parts = all.map(one => ({ name: one.encoding, value: one.ram_bytes, shown: bytes(one.ram_bytes) }));
  $("encodings").replaceChildren(shares(parts, kv.ram_bytes), make("div", { class: "scroll" }, table(
    [["Encoding", false], ["RAM", true], ["Files", true]],
    [...all, { encoding: "all", ram_bytes: kv.ram_bytes, file_bytes: kv.file_bytes }]
      .map(one => [one.encoding, bytes(one.ram_bytes), bytes(one.file_bytes)]))));
}

function pipelines(all, report) {
  if (!all.length) {
    $("pipelines").replaceChildren(make("p", { class: "note" }, `Nothing is being computed. Requests that name no pipeline use ${report.pipeline || "full"}.`));
    return;
  }
  const ratio = one => {
    const taken = (one.ram_bytes ?? 0) + (one.file_bytes ?? 0);
    return taken > 0 ? `${Math.round(100 * taken / one.uncompressed_bf16_bytes)} %` : "–";
  };
  $("pipelines").replaceChildren(table(
    [["Pipeline", false], ["Sequences", true], ["Tokens", true], ["RAM", true], ["Files", true], ["of bf16", true]],
    all.map(one => [one.pipeline || "full", count(one.sequences), count(one.tokens), bytes(one.ram_bytes), bytes(one.file_bytes), ratio(one)])));
}

function prefixSums(prefixes, report) {
  const rows = [
    ["Requests with a prefix", prefixes.requests === undefined ? undefined : `${count(prefixes.hits)} of ${count(prefixes.requests)}`],
    ["Prompt tokens taken from it", prefixes.prompt_tokens === undefined ? undefined : `${count(prefixes.hit_tokens)} of ${count(prefixes.prompt_tokens)}`],
    ["Nodes", prefixes.nodes === undefined ? undefined : count(prefixes.nodes)],
    ["Tokens", prefixes.tokens === undefined ? undefined : count(prefixes.tokens)],
    ["Bytes", prefixes.bytes === undefined ? undefined : bytes(prefixes.bytes)],
    ["Shared", report.prefix_sharing],
  ];
  const { disk } = prefixes;
  if (disk) {
    rows.push(["Files", `${count(disk.files)} (${bytes(disk.bytes)} of ${bytes(disk.max_bytes)})`],
      ["Written, read", `${count(disk.written)}, ${count(disk.read)}`],
      ["Not written, damaged", `${count((disk.failed ?? 0) + (disk.skipped ?? 0))}, ${count(disk.damaged)}`]);
  }
  $("prefixes").replaceChildren(table([["", false], ["", true]], rows.filter(([, value]) => value !== undefined)));
}

$("unlock").addEventListener("submit", event => {
  event.preventDefault();
  key.set($("key").value.trim());
  poll();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
poll();
