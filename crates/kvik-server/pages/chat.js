// The chat: sends the conversation, shows the answer as it comes, and what it took.

import { ApiError, chat, getJson, key } from "./api.js";
import { conversations, forget, fresh, keep, title } from "./conversations.js";
import { $, count, duration, make, stored } from "./dom.js";
import { copyText, markdown } from "./markdown.js";
import { pipelineField, showPipelineError } from "./pipeline.js";

const SETTINGS = ["model", "kv", "system", "temperature", "top_p", "max_tokens", "seed"];

let conversation = conversations[0] ?? fresh();
let running = null; // The AbortController of the answer that is coming.
let editing = null; // The index of the message that is being edited.
let methods = [];

// Settings.

function loadSettings() {
  const saved = stored("kvik.settings", {});
  for (const name of SETTINGS) if (name !== "model" && typeof saved[name] === "string") $(name).value = saved[name];
  $("key").value = key.get();
  return typeof saved.model === "string" ? saved.model : "";
}

function saveSettings() {
  const settings = Object.fromEntries(SETTINGS.map(name => [name, $(name).value]));
  try { localStorage.setItem("kvik.settings", JSON.stringify(settings)); } catch { /* lasts as long as the page */ }
}

async function loadServer(model) {
  try {
    const { data } = await getJson("/v1/models");
    $("model").replaceChildren(...data.map(({ id }) => make("option", { value: id }, id)));
    if (data.some(({ id }) => id === model)) $("model").value = model;
    const kv = await getJson("/v1/kv");
    methods = kv.methods ?? [];
    $("kv").placeholder = kv.pipeline || "full";
    problem(null);
  } catch (error) { problem(error); }
}

function body(messages) {
  const number = name => ($(name).value.trim() === "" ? undefined : Number($(name).value));
  const system = $("system").value.trim();
  const sent = messages.map(({ role, content }) => ({ role, content }));
  return {
    model: $("model").value || undefined,
    messages: system ? [{ role: "system", content: system }, ...sent] : sent,
    kv: $("kv").value.trim() ? $("kv").value : undefined,
    temperature: number("temperature"), top_p: number("top_p"), max_tokens: number("max_tokens"), seed: number("seed"),
  };
}

// What is shown.

function problem(error) {
  if (error instanceof ApiError && error.status === 401) {
    $("settings").open = true;
    $("problem").textContent = key.get() ? `${error.message}` : "This server wants an API key: enter it under Settings.";
  } else if (error) {
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    $("problem").textContent = `${error.message}${wait}`;
  }
  $("problem").hidden = !error;
}

function showList() {
  $("list").replaceChildren(...conversations.map(one => make("li", {},
    make("button", { type: "button", class: "quiet open", "aria-current": one.id === conversation.id ? "true" : false,
      click: () => choose(one) }, title(one)),
    make("button", { type: "button", class: "quiet", "aria-label": `Delete: ${title(one)}`,
      click: () => { forget(one.id); if (one.id === conversation.id) choose(fresh()); else showList(); } }, "×"))));
}

function choose(one) {
  running?.abort();
  conversation = one;
  setEditing(null);
  showList();
  showLog();
  problem(null);
  $("prompt").focus();
}

function article(message, index) {
  const content = make("div", { class: "content" });
  if (message.role === "assistant") content.append(markdown(message.content));
  else content.textContent = message.content;
  const last = index === conversation.messages.length - 1;
  const copy = make("button", { type: "button", class: "quiet", click: () => copyText(message.content, copy) }, "Copy");
  const actions = make("div", { class: "actions" }, copy,
    message.role === "user" ? make("button", { type: "button", class: "quiet", click: () => setEditing(index) }, "Edit") : null,
    message.role === "assistant" && last
      ? make("button", { type: "button", class: "quiet", click: regenerate }, "Regenerate") : null,
    message.info ? make("span", { class: "info" }, String(message.info)) : null);
  return make("article", { class: message.role, "aria-label": message.role === "user" ? "You" : "Model" }, content, actions);
}

function showLog() {
  $("log").replaceChildren(...conversation.messages.map(article));
  if (!conversation.messages.length) {
    $("log").append(make("p", { class: "empty" }, "Ask something. A pipeline under Settings changes how this conversation is cached."));
  }
  $("log").scrollTop = $("log").scrollHeight;
}

function setEditing(index) {
  if (running) return;
  editing = index;
  $("prompt").value = index === null ? "" : conversation.messages[index].content;
  $("send").textContent = index === null ? "Send" : "Send again";
  if (index !== null) $("prompt").focus();
}

// What is done.

function regenerate() {
  if (running) return;
  const question = conversation.messages.at(-2);
  if (question?.role === "user") answer(conversation.messages.slice(0, -1));
}

function send() {
  const text = $("prompt").value;
  if (running || !text.trim()) return;
  const before = conversation.messages.slice(0, editing ?? undefined);
  answer([...before, { role: "user", content: text }], text);
}

/** Asks for the answer to `messages`. If none came, refused or stopped, all is as it was, with `typed` in the field. */
async function answer(messages, typed = null) {
  const mine = conversation, before = mine.messages, edited = editing;
  const started = performance.now();
  const message = { role: "assistant", content: "", info: "" };
  const abort = running = new AbortController();
  setBusy(true);
  problem(null);
  showPipelineError(null);
  mine.messages = messages;
  editing = null;
  $("prompt").value = "";
  $("send").textContent = "Send";
  showLog();
  const content = make("div", { class: "content" });
  $("log").append(make("article", { class: "assistant", "aria-label": "Model", "aria-busy": "true" }, content));
  let usage = null, first = null, last = null, reason = null, failure = null, drawn = 0;
  const draw = () => {
    drawn = 0;
    if (mine !== conversation) return;
    const log = $("log"), atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    content.replaceChildren(markdown(message.content));
    if (atEnd) log.scrollTop = log.scrollHeight;
  };
  $("announce").textContent = "The model answers.";
  try {
    for await (const chunk of chat(body(messages), abort.signal)) {
      if (chunk.usage) usage = chunk.usage;
      const choice = chunk.choices?.[0];
      reason = choice?.finish_reason ?? reason;
      const text = choice?.delta?.content;
      if (!text) continue;
      last = performance.now();
      first ??= last;
      message.content += text;
      drawn ||= requestAnimationFrame(draw);
    }
  } catch (error) { failure = error; }
  cancelAnimationFrame(drawn);
  if (running === abort) running = null;
  const stopped = abort.signal.aborted;
  if (failure && !message.content) {
    mine.messages = before;
    if (mine === conversation) {
      editing = edited;
      if (typed !== null) $("prompt").value = typed;
      if (edited !== null) $("send").textContent = "Send again";
    }
  } else {
    message.info = told({ usage, started, first, last, reason, stopped, failure });
    mine.messages = [...messages, message];
  }
  if (mine.messages.length) keep(mine);
  if (!running) setBusy(false);
  showList();
  if (mine !== conversation) return;
  showLog();
  if (failure instanceof ApiError && failure.param === "kv") {
    $("announce").textContent = "";
    showPipelineError(failure.message);
    return;
  }
  if (failure && !stopped) problem(failure);
  $("announce").textContent = stopped ? "Stopped." : failure ? "" : message.content;
  $("prompt").focus();
}

/** What an answer took, in words. */
function told({ usage, started, first, last, reason, stopped, failure }) {
  const parts = [];
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`${count(usage.completion_tokens)} tokens`);
    if (last > first && usage.completion_tokens > 1) {
      parts.push(`${((usage.completion_tokens - 1) / (last - first) * 1000).toFixed(1)} tokens/s`);
    }
    parts.push(`prompt ${count(usage.prompt_tokens)} tokens, ${count(cached)} cached`);
  }
  if (first !== null) parts.push(`first after ${duration((first - started) / 1000)}`);
  if (stopped) parts.push("stopped");
  else if (failure) parts.push("broke off");
  else if (reason === "length") parts.push("cut at max tokens");
  return parts.join(" · ");
}

function setBusy(busy) {
  $("send").hidden = busy;
  $("stop").hidden = !busy;
}

// Keys and buttons.

$("composer").addEventListener("submit", event => { event.preventDefault(); send(); });
$("options").addEventListener("submit", event => event.preventDefault());
$("options").addEventListener("input", event => { if (event.target.id !== "key") saveSettings(); });
$("key").addEventListener("change", () => { key.set($("key").value.trim()); loadServer($("model").value); });
$("prompt").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => choose(fresh()));
document.addEventListener("keydown", event => {
  if (event.key !== "Escape") return;
  if (running) running.abort();
  else if (editing !== null) setEditing(null);
});

const narrow = matchMedia("(max-width: 760px)");
if (narrow.matches) { $("history").open = false; $("settings").open = false; }
pipelineField(() => methods);
loadServer(loadSettings());
showList();
showLog();
$("prompt").focus();
