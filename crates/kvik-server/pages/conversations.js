// Conversations, kept in this browser.

import { stored } from "./dom.js";

const NAME = "kvik.conversations";
const MOST = 100;

const valid = one => one && typeof one.id === "string" && Array.isArray(one.messages)
  && one.messages.every(message => typeof message?.content === "string" && ["user", "assistant"].includes(message.role));

/** All, the latest first. */
export let conversations = [].concat(stored(NAME, [])).filter(valid);

/** Keeps `conversation`, as the latest; where the browser has no more room, the oldest go. */
export function keep(conversation) {
  conversations = [conversation, ...conversations.filter(({ id }) => id !== conversation.id)].slice(0, MOST);
  write();
}

export function forget(id) {
  conversations = conversations.filter(one => one.id !== id);
  write();
}

export const fresh = () => ({ id: `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`, messages: [] });

export const title = ({ messages }) => messages[0]?.content.trim().split("\n")[0].slice(0, 60) || "New conversation";

function write() {
  for (let some = conversations.slice(); ; some.pop()) {
    try { localStorage.setItem(NAME, JSON.stringify(some)); return; }
    catch { if (!some.length) return; }
  }
}
