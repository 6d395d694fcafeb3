// A text field with a list of what fits, as the ARIA Authoring Practices describe a combobox.

import { el } from "./dom.js";

const PAUSE = 120;

/**
 * @param input the text field
 * @param list where the choices go
 * @param find gives, for a text, a promise of choices: `{value, text, note}`
 * @param choose called with the value that was chosen
 */
export function combobox({ input, list, find, choose }) {
  let choices = [];
  let active = -1;
  let asked = 0;
  let shown = null;
  let timer;

  const set = (name, value) => input.setAttribute(`aria-${name}`, value);
  input.setAttribute("role", "combobox");
  set("autocomplete", "list");
  set("controls", list.id);
  list.setAttribute("role", "listbox");
  // Browsers let the Tab key stop at whatever scrolls.
  list.setAttribute("tabindex", "-1");

  function close() {
    asked += 1;
    clearTimeout(timer);
    active = -1;
    list.hidden = true;
    set("expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function take(choice) {
    input.value = "";
    close();
    choose(choice.value);
  }

  function mark(place) {
    active = place;
    [...list.children].forEach((option, at) => {
      option.setAttribute("aria-selected", String(at === place));
      if (at === place) option.scrollIntoView({ block: "nearest" });
    });
    if (place >= 0) set("activedescendant", list.children[place].id);
    else input.removeAttribute("aria-activedescendant");
  }

  function show() {
    const options = choices.map((choice, place) =>
      el(
        "li",
        {
          id: `${list.id}-${place}`,
          role: "option",
          "aria-selected": "false",
          onmousedown: (event) => event.preventDefault(),
          onclick: () => take(choice),
        },
        choice.text,
        choice.note ? el("span", { class: "quiet" }, ` ${choice.note}`) : null,
      ),
    );
    list.replaceChildren(...options);
    if (!options.length) {
      const none = el("li", { role: "option", "aria-disabled": "true", class: "quiet" }, "none");
      list.append(none);
    }
    active = -1;
    list.hidden = false;
    set("expanded", "true");
  }

  async function look() {
    clearTimeout(timer);
    const mine = ++asked;
    const text = input.value.trim();
    const found = await find(text);
    if (mine !== asked) return;
    choices = found;
    shown = text;
    show();
  }

  // Who types fast means the text, not the choices for its beginning.
  async function enter() {
    if (list.hidden || shown !== input.value.trim()) await look();
    const choice = choices[Math.max(active, 0)];
    if (choice && !list.hidden) take(choice);
  }

  function key(event) {
    const last = choices.length - 1;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) look();
      else if (event.key === "ArrowDown") mark(active < last ? active + 1 : 0);
      else mark(active > 0 ? active - 1 : last);
    } else if (event.key === "Enter") {
      event.preventDefault();
      enter();
    } else if (event.key === "Escape") close();
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, PAUSE);
  });
  input.addEventListener("focus", look);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", key);
  close();
}
