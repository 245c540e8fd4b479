// A safe subset of Markdown as nodes: paragraphs, headings, lists, code, bold, italic.
//
// Everything else, HTML and links included, stays the text that it is. The text is read once from left to right.

import { make } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const HEADING = /^(#{1,6})\s+(.*)$/;

/** Nodes for `text`. */
export function markdown(text) {
  const out = document.createDocumentFragment();
  const lines = text.split("\n");
  let paragraph = [], lists = [];
  const end = () => {
    if (paragraph.length) out.append(inline(make("p"), paragraph.join("\n")));
    paragraph = [];
  };
  for (let at = 0; at < lines.length; at += 1) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (fence) {
      end(); lists = [];
      const code = [];
      for (at += 1; at < lines.length && !lines[at].trimStart().startsWith(fence[1]); at += 1) code.push(lines[at]);
      out.append(codeBlock(code.join("\n"), fence[2]));
      continue;
    }
    const item = ITEM.exec(line);
    if (item) {
      end();
      const depth = item[1].length, kind = item[2] ? "ol" : "ul";
      while (lists.length && lists.at(-1).depth > depth) lists.pop();
      if (!lists.length || (lists.at(-1).depth < depth && lists.length < 6)) {
        const list = make(kind, item[2] && item[2] !== "1" ? { start: item[2] } : {});
        (lists.length ? lists.at(-1).list.lastElementChild ?? lists.at(-1).list : out).append(list);
        lists.push({ depth, list });
      } else if (lists.at(-1).list.localName !== kind) {
        const list = make(kind);
        lists.at(-1).list.after(list);
        lists.at(-1).list = list;
      }
      lists.at(-1).list.append(inline(make("li"), item[3]));
      continue;
    }
    if (line.trim() === "") { end(); continue; }
    if (lists.length && /^\s{2,}/.test(line)) {
      inline(lists.at(-1).list.lastElementChild, "\n" + line.trim());
      continue;
    }
    lists = [];
    const heading = HEADING.exec(line);
    if (heading) {
      end();
      out.append(inline(make(`h${Math.min(6, heading[1].length + 2)}`), heading[2]));
    } else paragraph.push(line);
  }
  end();
  return out;
}

function codeBlock(text, language) {
  const copy = make("button", { type: "button", class: "quiet", click: () => copyText(text, copy) }, "Copy");
  return make("div", { class: "code" },
    make("div", { class: "code-head" }, make("span", {}, language || "code"), copy),
    make("pre", { tabindex: "0" }, make("code", {}, text)));
}

/** Puts `text` on the clipboard and says so on `button`. */
export async function copyText(text, button) {
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
  catch { button.textContent = "Not allowed"; }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

/** Appends `text` to `parent` with code, bold and italic. */
function inline(parent, text, depth = 0) {
  const absent = new Set();
  let plain = "", at = 0;
  const flush = () => { if (plain) parent.append(plain); plain = ""; };
  while (at < text.length) {
    const mark = depth < 4 ? /^(?:`+|\*\*|__|\*|_)/.exec(text.slice(at, at + 8))?.[0] : undefined;
    const close = mark ? closing(text, at, mark, absent) : -1;
    if (close < 0) {
      plain += mark ?? text[at];
      at += (mark ?? " ").length;
      continue;
    }
    flush();
    const inner = text.slice(at + mark.length, close);
    if (mark[0] === "`") parent.append(make("code", {}, inner));
    else parent.append(inline(make(mark.length === 2 ? "strong" : "em"), inner, depth + 1));
    at = close + mark.length;
  }
  flush();
  return parent;
}

/** Where the text that `mark` opens at `at` is closed, or -1. */
function closing(text, at, mark, absent) {
  const start = at + mark.length;
  if (absent.has(mark) || start >= text.length) return -1;
  if (mark[0] === "`") {
    const close = text.indexOf(mark, start);
    if (close < 0) absent.add(mark);
    return close;
  }
  const word = character => character !== undefined && /[\p{L}\p{N}]/u.test(character);
  if (/\s/.test(text[start]) || (mark[0] === "_" && word(text[at - 1]))) return -1;
  for (let close = text.indexOf(mark, start + 1); close >= 0; close = text.indexOf(mark, close + 1)) {
    // A single star is not half of a double one.
    if (mark.length === 1 && text[close + 1] === mark) { close += 1; continue; }
    if (!/\s/.test(text[close - 1]) && !(mark[0] === "_" && word(text[close + mark.length]))) return close;
  }
  absent.add(mark);
  return -1;
}
