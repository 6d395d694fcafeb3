// One item: what is like it, and why it is (not) shown.

import { bar, byId, el, roving } from "./dom.js";
import * as api from "./api.js";
import { markOpen } from "./map.js";
import { showWhy } from "./why.js";

const NEIGHBOURS = 10;
const LEAST_SEEN = 240;

let opened = null;
let cameFrom = null;

/** Open the panel of an item; `context` has what is asked, what to call, and where to complain. */
export async function showItem(item, context) {
  const card = byId("item-card");
  if (!card.contains(document.activeElement)) cameFrom = document.activeElement;
  opened = item;
  byId("item-title").textContent = item.title;
  byId("item-id").textContent = item.item_id;
  byId("near").replaceChildren();
  byId("item-add").onclick = () => context.add(item);
  byId("item-close").onclick = close;
  show(true);
  markOpen(item.item_id);
  byId("item-title").focus({ preventScroll: true });
  const { top } = card.getBoundingClientRect();
  if (top < 0 || top > innerHeight - LEAST_SEEN) card.scrollIntoView();
  card.onkeydown = (event) => {
    if (event.key === "Escape") close();
  };
  const isOpen = (one) => one === opened;
  await Promise.all([near(item, context), showWhy(item, { ...context, isOpen })]);
}

function show(isOpen) {
  byId("item-hint").hidden = isOpen;
  for (const id of ["item-close", "item-body"]) byId(id).hidden = !isOpen;
}

function close() {
  if (!opened) return;
  opened = null;
  byId("item-title").textContent = "One item";
  show(false);
  markOpen(null);
  // What it was opened from may have been drawn anew since.
  (cameFrom?.isConnected ? cameFrom : byId("ten-title")).focus();
}

async function near(item, { open, complain }) {
  let found;
  try {
    found = await api.similar(item.item_id, NEIGHBOURS);
  } catch (error) {
    complain(error);
    return;
  }
  if (opened !== item) return;
  const best = Math.max(...found.items.map(({ retrieval_score: score }) => score));
  byId("near").replaceChildren(
    ...found.items.map((one) =>
      el(
        "li",
        {},
        el("button", { type: "button", class: "title", onclick: () => open(one) }, one.title),
        el("span", { class: "number retrieval" }, one.retrieval_score.toFixed(3)),
        bar(best > 0 ? one.retrieval_score / best : 0, "retrieval"),
      ),
    ),
  );
  roving(byId("near"), "button");
}
