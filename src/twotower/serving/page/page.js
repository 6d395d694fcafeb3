// The page: what is asked stands in the address, and every change of it is answered anew.

import { go, isEmpty, read } from "./address.js";
import * as api from "./api.js";
import { showCandidates } from "./candidates.js";
import { combobox } from "./combobox.js";
import { byId, el, plural, redraw } from "./dom.js";
import { showFilters } from "./filters.js";
import { showItem } from "./item.js";
import { markMap, showMap } from "./map.js";
import { showFunnel, showLatency, showTen } from "./ten.js";

const SHOWN = 10;
const MOST_CANDIDATES = 500;

let served = null;
let offered = [];
let points = new Map();
let turn = 0;

/** A new question with some of it changed. */
const ask = (change) => go({ ...read(), ...change });

const add = (item) => ask({ history: [...read().history, item.item_id] });

const open = (item) => showItem(item, { asked: read(), shown: SHOWN, add, open, complain });

function complain(error) {
  if (!(error instanceof api.Refused)) throw error;
  byId("key").hidden = error.status !== 401;
  byId("alert").replaceChildren(el("p", { class: "alert" }, error.message));
}

/** What belongs to a bundle and not to a request. */
async function loadBundle() {
  const [{ summary }, { filters }, map] = await Promise.all([
    api.summary(),
    api.filters(),
    api.map(),
  ]);
  served = summary;
  offered = filters;
  points = new Map(map.points.map((point) => [point.item.item_id, point]));
  byId("served").textContent =
    `${summary.name} \u00b7 ${summary.version} \u00b7 ${plural(summary.num_users, "user")}`;
  showFunnel(summary);
  showMap(map.points, open);
}

/** Answer what the address asks. */
async function answer() {
  const mine = ++turn;
  const asked = read();
  byId("alert").replaceChildren();
  document.body.setAttribute("aria-busy", "true");
  try {
    if (!served) await loadBundle();
    if (isEmpty()) {
      const { user } = await api.randomUser();
      go({ ...asked, user }, { replace: true });
      return;
    }
    showFilters(offered, asked.filters, (filters) => ask({ filters }));
    const [ten, known] = await Promise.all([api.recommend(asked, SHOWN), historyOf(asked.user)]);
    if (mine !== turn) return;
    if (ten.version !== served.version) await loadBundle();
    showAnswer(ten, asked);
    const width = Math.max(SHOWN, Math.min(served.num_candidates, MOST_CANDIDATES));
    const all = ten.source === "model" ? await api.recommend(asked, width) : ten;
    if (mine !== turn) return;
    showCandidates(all, ten.items.length, open);
    await showPlaces(asked, known, ten, all, mine);
  } catch (error) {
    if (mine === turn) complain(error);
  } finally {
    if (mine === turn) document.body.removeAttribute("aria-busy");
  }
}

const historyOf = async (user) =>
  user === null ? { items: [], num_events: 0 } : (await api.history(user)).history;

function showAnswer(ten, { user, history }) {
  const who = user ?? "somebody new";
  document.title = `${who} \u00b7 twotower`;
  byId("ten-title").textContent = `For ${who}`;
  byId("user").placeholder = user ?? "";
  byId("key").hidden = true;
  showTen(ten, { open, add });
  showLatency(ten);
  const events = history.length ? ` with ${plural(history.length, "added item")}` : "";
  byId("status").textContent = `${plural(ten.items.length, "item")} for ${who}${events}`;
}

async function showPlaces(asked, known, ten, all, mine) {
  const ids = (items) => items.map(({ item_id: id }) => id);
  const wanted = [...asked.history, ...ids(known.items), ...ids(all.items), ...ids(ten.items)];
  const unknown = [...new Set(wanted)].filter((id) => !points.has(id));
  const further = unknown.length ? (await api.places(unknown)).points : [];
  if (mine !== turn) return;
  const found = new Map([...points, ...further.map((point) => [point.item.item_id, point])]);
  const placed = (some) => some.map((id) => found.get(id)).filter(Boolean);
  showHistory(asked, known, found);
  markMap({
    history: placed([...asked.history, ...ids(known.items)]),
    candidate: placed(ids(all.items.slice(ten.items.length))),
    final: placed(ids(ten.items)),
  });
}

function showHistory({ history }, known, found) {
  const removed = (place) => history.filter((_, at) => at !== place);
  const added = history.map((id, place) => {
    const item = found.get(id)?.item ?? { item_id: id, title: id };
    return el(
      "li",
      { class: "added" },
      el("button", { type: "button", class: "title", onclick: () => open(item) }, item.title),
      el(
        "button",
        {
          type: "button",
          class: "bare",
          "data-key": `remove ${place}`,
          "aria-label": `Remove ${item.title} from the history`,
          onclick: () => ask({ history: removed(place) }),
        },
        "\u2715",
      ),
    );
  });
  const old = known.items.map((item) =>
    el(
      "li",
      {},
      el("button", { type: "button", class: "title", onclick: () => open(item) }, item.title),
    ),
  );
  redraw(byId("history"), added.reverse(), old);
  byId("history-count").textContent = plural(known.num_events + history.length, "event");
}

combobox({
  input: byId("user"),
  list: byId("user-list"),
  find: async (text) => {
    const { users } = await api.users(text);
    return users.map((user) => ({ value: user, text: user }));
  },
  choose: (user) => ask({ user, history: [] }),
});
combobox({
  input: byId("item"),
  list: byId("item-list"),
  find: async (text) => {
    const { items } = await api.items(text);
    return items.map((item) => ({ value: item, text: item.title, note: item.item_id }));
  },
  choose: add,
});
byId("random").addEventListener("click", async () => {
  try {
    ask({ user: (await api.randomUser()).user, history: [] });
  } catch (error) {
    complain(error);
  }
});
byId("nobody").addEventListener("click", () => ask({ user: null, history: [] }));
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  api.useKey(byId("key-text").value);
  byId("key-text").value = "";
  answer();
});
byId("filters-card").open = matchMedia("(min-width: 60rem)").matches;
addEventListener("hashchange", answer);
answer();
