// Columns of the item table to filter by: values to toggle, numbers from and to.

import { byId, count, el, plural, redraw } from "./dom.js";

const SHOWN = 12;

/** The controls for `offered`; `changed` is called with the list of filters. */
export function showFilters(offered, filters, changed) {
  const kept = (column) => filters.filter((one) => one.column === column);
  const replace = (column, ...further) =>
    changed([...filters.filter((one) => one.column !== column), ...further]);
  const sets = offered.map((one) =>
    "choices" in one ? values(one, kept, replace) : numbers(one, kept, replace),
  );
  const reset = filters.length
    ? el("button", { type: "button", onclick: () => changed([]) }, "Clear all filters")
    : null;
  const none = offered.length ? null : el("p", { class: "quiet" }, "The items have no such columns.");
  redraw(byId("filters"), sets, reset, none);
  byId("filters-count").textContent = filters.length ? plural(filters.length, "column") : "";
}

function values({ column, choices, num_different: different }, kept, replace) {
  const more = different - choices.length;
  const [now] = kept(column).filter(({ operator }) => ["in", "not_in"].includes(operator));
  const chosen = now?.values ?? [];
  const operator = now?.operator ?? "in";
  const set = (one, some) =>
    replace(column, ...(some.length ? [{ column, operator: one, values: some }] : []));
  const chips = choices.map(({ value, count: number }, place) => {
    const box = el("input", {
      type: "checkbox",
      "data-key": `${column}=${value}`,
      onchange: (event) =>
        set(operator, event.target.checked ? [...chosen, value] : chosen.filter((v) => v !== value)),
    });
    box.checked = chosen.includes(value);
    const hidden = place >= SHOWN && !box.checked;
    return el(
      "label",
      { class: `chip${hidden ? " further" : ""}` },
      box,
      `${value} `,
      el("span", { class: "quiet" }, count(number)),
    );
  });
  const mode = el("select", {
    "aria-label": `What to do with the chosen values of ${column}`,
    "data-key": `${column} mode`,
    onchange: (event) => set(event.target.value, chosen),
  });
  mode.append(el("option", { value: "in" }, "only"), el("option", { value: "not_in" }, "without"));
  mode.value = operator;
  mode.disabled = !chosen.length;
  const field = el(
    "fieldset",
    {},
    el("legend", {}, column),
    mode,
    el("div", { class: "chips" }, chips, further(chips)),
  );
  if (more) field.append(el("p", { class: "quiet" }, `and ${plural(more, "rarer value")}`));
  return field;
}

function further(chips) {
  const some = chips.filter((chip) => chip.classList.contains("further"));
  if (!some.length) return null;
  return el(
    "button",
    {
      type: "button",
      class: "chip",
      onclick: (event) => {
        some.forEach((chip) => chip.classList.remove("further"));
        some[0].querySelector("input").focus();
        event.target.remove();
      },
    },
    `${some.length} more`,
  );
}

function numbers({ column, low, high }, kept, replace) {
  const now = Object.fromEntries(kept(column).map((one) => [one.operator, one.values[0]]));
  const set = (operator, text) => {
    const next = { ...now, [operator]: text === "" ? undefined : Number(text) };
    const some = Object.entries(next).filter(([, value]) => Number.isFinite(value));
    replace(column, ...some.map(([one, value]) => ({ column, operator: one, values: [value] })));
  };
  const field = (operator, name, end) =>
    el(
      "label",
      {},
      `${name} `,
      el("input", {
        type: "number",
        step: "any",
        inputmode: "decimal",
        placeholder: end,
        value: now[operator] ?? null,
        "data-key": `${column} ${operator}`,
        "aria-label": `${column}, ${name}`,
        onchange: (event) => set(operator, event.target.value),
      }),
    );
  return el(
    "fieldset",
    {},
    el("legend", {}, column),
    el("div", { class: "range" }, field("at_least", "from", low), field("at_most", "to", high)),
  );
}
