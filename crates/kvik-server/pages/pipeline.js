// The field for a pipeline: suggests methods and parameters while one types, and points at the character that is wrong.

import { $, make } from "./dom.js";

/** What is being written at `caret`: a method's name or a parameter of a method. */
export function word(text, caret) {
  const before = text.slice(0, caret);
  const stage = before.slice(before.lastIndexOf("+") + 1);
  const open = stage.indexOf("(");
  if (open < 0) return { method: null, part: stage.trimStart() };
  if (stage.includes(")")) return null;
  const part = stage.slice(open + 1).split(",").at(-1).trimStart();
  return part.includes("=") ? null : { method: stage.slice(0, open).trim(), part };
}

/** Suggestions for what is being written: what to insert, and what it means. */
export function suggestions(text, caret, methods) {
  const at = word(text, caret);
  if (!at) return [];
  const matching = name => name.startsWith(at.part) && name !== at.part;
  if (at.method === null) {
    const whole = text.trim() === at.part.trim() ? [{ name: "full", summary: "the cache as it is, nothing changed" }] : [];
    return [...whole, ...methods].filter(({ name }) => matching(name))
      .map(({ name, summary }) => ({ insert: name, about: summary ?? "" }));
  }
  const parameters = methods.find(({ name }) => name === at.method)?.parameters ?? [];
  const given = text.slice(text.lastIndexOf("(", caret), caret);
  return parameters.filter(({ name }) => matching(name) && !given.includes(`${name}=`))
    .map(({ name, about, kind, default: usual }) =>
      ({ insert: `${name}=`, about: `${about} (${kind}${usual ? `; default ${usual}` : ""})` }));
}

/** Makes `#kv` a field with suggestions in `#kv-list`; `methods` gives those of the server. */
export function pipelineField(methods) {
  const field = $("kv"), list = $("kv-list");
  let shown = [], chosen = -1;
  const close = () => {
    list.hidden = true; shown = []; chosen = -1;
    field.setAttribute("aria-expanded", "false");
    field.removeAttribute("aria-activedescendant");
  };
  const mark = index => {
    chosen = index;
    [...list.children].forEach((option, at) => option.setAttribute("aria-selected", String(at === index)));
    if (index >= 0) {
      field.setAttribute("aria-activedescendant", `kv-option-${index}`);
      list.children[index].scrollIntoView({ block: "nearest" });
    }
  };
  const take = index => {
    const caret = field.selectionStart, { part } = word(field.value, caret);
    const start = caret - part.length, { insert } = shown[index];
    field.setRangeText(insert, start, caret, "end");
    close();
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const open = () => {
    shown = suggestions(field.value, field.selectionStart, methods()).slice(0, 40);
    list.replaceChildren(...shown.map(({ insert, about }, index) =>
      make("li", { role: "option", id: `kv-option-${index}`, "aria-selected": "false",
        mousedown: event => { event.preventDefault(); take(index); } },
      make("code", {}, insert), make("span", {}, about))));
    chosen = -1;
    list.hidden = shown.length === 0;
    field.setAttribute("aria-expanded", String(!list.hidden));
  };
  field.addEventListener("input", () => { showPipelineError(null); open(); });
  field.addEventListener("focus", open);
  field.addEventListener("blur", close);
  field.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (list.hidden) open();
      if (!shown.length) return;
      const step = event.key === "ArrowDown" ? 1 : -1;
      mark((Math.max(chosen, step > 0 ? -1 : 0) + step + shown.length) % shown.length);
      event.preventDefault();
    } else if ((event.key === "Enter" || event.key === "Tab") && chosen >= 0) {
      take(chosen);
      event.preventDefault();
    } else if (event.key === "Escape" && !list.hidden) {
      close();
      event.stopPropagation();
    }
  });
}

/** Shows what is wrong with the pipeline, and puts the caret where it is; `null` takes that back. */
export function showPipelineError(message) {
  const field = $("kv"), error = $("kv-error");
  field.setAttribute("aria-invalid", String(message !== null));
  error.hidden = message === null;
  error.textContent = message ?? "";
  const at = /\(character (\d+)\)/.exec(message ?? "")?.[1];
  if (message === null) return;
  $("settings").open = true;
  field.focus();
  if (at !== undefined) {
    // The server counts characters, the field UTF-16 units.
    const start = [...field.value].slice(0, Number(at)).join("").length;
    field.setSelectionRange(start, Math.min(field.value.length, start + 1));
  }
}
