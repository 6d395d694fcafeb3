// Why an item is (not) shown, where the server explains that: `/v1/explain` of its OpenAPI document
// says so, and which fields it takes.

import * as api from "./api.js";
import { byId, el } from "./dom.js";

const PATH = "/v1/explain";
const MOST_ROWS = 30;

let takes;

/** Fill the panel's answer; `asked` is what was recommended for. */
export async function showWhy(item, { asked, complain, isOpen }) {
  const box = byId("why");
  box.replaceChildren();
  box.hidden = true;
  try {
    takes ??= await fields();
    if (!takes) return;
    const known = { ...asked, item: item.item_id };
    const body = Object.fromEntries(Object.entries(known).filter(([name]) => takes.has(name)));
    const found = await api.explain(body);
    if (!isOpen(item)) return;
    box.replaceChildren(el("h3", {}, "Why (not) this item"), shown(found));
    box.hidden = false;
  } catch (error) {
    complain(error);
  }
}

/** Names of the fields that the server takes; false where it explains nothing. */
async function fields() {
  const { paths, components } = await api.openApi();
  const content = paths[PATH]?.post?.requestBody?.content?.["application/json"];
  if (!content) return false;
  const name = content.schema.$ref?.split("/").at(-1);
  const schema = name ? components.schemas[name] : content.schema;
  return new Set(Object.keys(schema.properties));
}

function shown(value) {
  if (Array.isArray(value)) return list(value);
  if (value !== null && typeof value === "object") return entries(value);
  return text(value);
}

const text = (value) => {
  if (value === null) return "\u2013";
  if (typeof value === "number" && !Number.isInteger(value)) return value.toPrecision(4);
  if (typeof value === "boolean") return value ? "yes" : "no";
  return String(value);
};

const words = (name) => name.replaceAll("_", " ");

const entries = (value) =>
  el(
    "dl",
    { class: "facts" },
    Object.entries(value).map(([name, one]) => [el("dt", {}, words(name)), el("dd", {}, shown(one))]),
  );

function list(values) {
  const some = values.slice(0, MOST_ROWS);
  if (!some.length) return text(null);
  if (some.some((one) => one === null || typeof one !== "object" || Array.isArray(one))) {
    return some.map(text).join(", ");
  }
  const names = [...new Set(some.flatMap(Object.keys))];
  const cell = (one) => (one !== null && typeof one === "object" ? JSON.stringify(one) : text(one ?? null));
  return el(
    "table",
    {},
    el("thead", {}, el("tr", {}, names.map((name) => el("th", { scope: "col" }, words(name))))),
    el("tbody", {}, some.map((row) => el("tr", {}, names.map((name) => el("td", {}, cell(row[name])))))),
  );
}
