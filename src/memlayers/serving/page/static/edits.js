// The journal: every edit, the latest first.

import { $, getJson, h, tried, when } from "./api.js";

const PAGE = 50;
const NAMED = 5;

export async function showJournal(state, before = null) {
  const found = await getJson(`${state.at}/journal?limit=${PAGE}${before === null ? "" : `&before=${before}`}`);
  const place = $("journal");
  if (before === null) {
    place.replaceChildren(h("table", { class: "cards" }, h("caption", { class: "unseen" }, "Edits"),
      h("thead", {}, h("tr", {}, ["Edit", "Time", "What", "Facts"].map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {})));
  }
  place.querySelector("[data-more]")?.remove();
  place.querySelector("tbody").append(...found.data.map(row));
  if (!found.data.length && before === null) place.replaceChildren(h("p", { class: "soft" }, "No edits yet."));
  if (found.has_more) {
    const last = found.data.at(-1).number;
    place.append(h("button", { type: "button", "data-more": "",
      onclick: (event) => tried(() => showJournal(state, last), event.target) }, "Show more"));
  }
}

function row(edit) {
  const what = edit.kind + (edit.undoes ? ` of ${edit.undoes}` : "") + (edit.undone ? " (taken back)" : "");
  const names = edit.ids.slice(0, NAMED).join(", ");
  return h("tr", {}, h("td", { "data-label": "Edit" }, String(edit.number)),
    h("td", { "data-label": "Time" }, when(edit.time)), h("td", { "data-label": "What" }, what),
    h("td", { "data-label": "Facts" }, names + (edit.ids.length > NAMED ? ` and ${edit.ids.length - NAMED} more` : "")));
}
