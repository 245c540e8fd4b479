// The prefix tree: a list in lists, with a bar for each node that says where in a prompt its tokens stand.
//
// Nodes with children fold; what is folded, and what has the focus, stays so when the figures change.

import { bytes, count, duration, make } from "./dom.js";

const known = new Map(); // By owner and id, the parts of a node that is shown.

/** Shows the trees of `service` in `place`. */
export function prefixTrees(place, service) {
  const trees = service.prefix_trees ?? [];
  const focused = document.activeElement;
  const seen = new Set();
  place.replaceChildren(...trees.flatMap((tree, index) => {
    const name = tree.shared_by_all ? "All requests" : tree.owner ?? "Requests without a key";
    const own = `${tree.owner ?? index}/`;
    const longest = Math.max(1, ...tree.nodes.map(node => node.prefix_tokens));
    const now = service.uptime_seconds ?? 0;
    return [
      make("h3", {}, name),
      make("ul", { class: "tree", "aria-label": `Prefixes: ${name}` }, ...level(tree.nodes, 0, tree.nodes.length, 0, tree.children, one => {
        seen.add(own + one.id);
        return row(own + one.id, one, longest, now);
      })),
    ];
  }), ...(trees.some(tree => tree.nodes.length) ? [] : [make("p", { class: "note" }, "No prompt has left a prefix yet.")]));
  for (const key of known.keys()) if (!seen.has(key)) known.delete(key);
  if (focused !== document.activeElement && place.contains(focused)) focused.focus({ preventScroll: true });
}

/** The nodes from `begin` to `end` that stand at `depth`, each with those below; of `children` that there are. */
function level(nodes, begin, end, depth, children, show) {
  const items = [];
  for (let at = begin; at < end;) {
    const node = nodes[at];
    let next = at + 1;
    while (next < end && nodes[next].depth > depth) next += 1;
    const { item, list } = show(node);
    list.replaceChildren(...level(nodes, at + 1, next, depth + 1, node.children, show));
    items.push(item);
    at = next;
  }
  if (children > items.length) items.push(make("li", { class: "note" }, `${count(children - items.length)} more, used longer ago`));
  return items;
}

/** A node's parts, made once, with the figures of now. */
function row(key, node, longest, now) {
  let parts = known.get(key);
  const folds = node.children > 0;
  if (!parts || parts.folds !== folds) {
    const text = make("span", {}), fill = make("i", {});
    const head = [text, make("span", { class: "span", "aria-hidden": "true" }, fill)];
    const list = make("ul", {});
    const inner = folds ? make("details", { open: true }, make("summary", {}, ...head), list) : make("div", { class: "leaf" }, ...head);
    parts = { folds, item: make("li", {}, inner), text, fill, list };
    known.set(key, parts);
  }
  parts.text.textContent = [
    `${count(node.tokens)} tokens, to ${count(node.prefix_tokens)}`, bytes(node.bytes),
    `${count(node.hits)} ${node.hits === 1 ? "hit" : "hits"}`, `used ${duration(Math.max(0, now - node.last_used_seconds))} ago`,
    folds ? `${count(node.children)} ${node.children === 1 ? "child" : "children"}` : "",
    node.locks ? `in use by ${count(node.locks)}` : "",
  ].filter(Boolean).join(" · ");
  parts.fill.style.marginLeft = `${100 * (node.prefix_tokens - node.tokens) / longest}%`;
  parts.fill.style.width = `${100 * node.tokens / longest}%`;
  return parts;
}
