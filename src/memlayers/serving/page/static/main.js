// Which memory, which view, and what every view shows after an edit.

import { $, count, encoded, getJson, h, say, tried } from "./api.js";
import { startChat } from "./chat.js";
import { showFacts, startFacts } from "./facts.js";
import { startImport } from "./import.js";
import { showJournal } from "./edits.js";
import { showScores } from "./scores.js";

const VIEWS = ["chat", "facts", "import", "edits", "scores"];

const state = {
  memory: null,
  get at() { return `/v1/memories/${encoded(this.memory.id)}`; },
  /** After an edit: the memory's standing, what can be taken back, and the view that is open. */
  async refresh() {
    const [memory, journal] = await Promise.all([getJson(state.at), getJson(`${state.at}/journal?limit=1000`)]);
    state.memory = memory;
    $("standing").textContent = `${count(memory.facts, "fact")}, version ${memory.version}` +
      (memory.editable ? "" : ` (cannot be edited: ${memory.reason})`);
    state.showUndo(journal);
    await state.show();
  },
  showUndo(journal) {
    const last = journal.data.find((edit) => edit.number === journal.undoable);
    for (const button of document.querySelectorAll("[data-undo]")) {
      button.textContent = last ? `Undo edit ${last.number} (${last.kind})` : "Nothing to undo";
      button.disabled = !last || !state.memory.editable;
      button.dataset.number = last ? last.number : "";
    }
  },
  view: "chat",
  async show() {
    if (state.view === "facts") await showFacts();
    if (state.view === "edits") await showJournal(state);
    if (state.view === "scores") await showScores(state);
  },
};

async function open(view, focus = false) {
  state.view = VIEWS.includes(view) ? view : "chat";
  for (const name of VIEWS) {
    const tab = $(`tab-${name}`);
    const chosen = name === state.view;
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    $(name).hidden = !chosen;
    if (chosen && focus) tab.focus();
  }
  history.replaceState(null, "", `#${state.view}`);
  if (state.memory) await tried(() => state.show());
}

function startTabs() {
  VIEWS.forEach((name, place) => {
    const tab = $(`tab-${name}`);
    tab.addEventListener("click", () => open(name));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const to = event.key === "Home" ? 0 : event.key === "End" ? VIEWS.length - 1 :
        step && (place + step + VIEWS.length) % VIEWS.length;
      if (to === undefined) return;
      event.preventDefault();
      open(VIEWS[to], true);
    });
  });
}

function startUndo() {
  for (const button of document.querySelectorAll("[data-undo]")) {
    button.addEventListener("click", () => tried(async () => {
      const number = Number(button.dataset.number);
      say(`Undoing edit ${number} …`);
      await getJson(`${state.at}/undo`, { method: "POST", json: { number } });
      say(`Edit ${number} was taken back.`);
      await state.refresh();
    }));
  }
}

async function start() {
  startTabs();
  startUndo();
  startChat(state);
  startFacts(state);
  startImport(state);
  const memories = (await getJson("/v1/memories")).data;
  if (!memories.length) throw new Error("this server serves no memory");
  $("memory").replaceChildren(...memories.map((each) => h("option", { value: each.id }, each.id)));
  state.memory = memories[0];
  $("memory").addEventListener("change", () => tried(async () => {
    state.memory = memories.find((each) => each.id === $("memory").value);
    $("anew").click();
    await state.refresh();
  }));
  await open(location.hash.slice(1));
  await state.refresh();
}

tried(start);
