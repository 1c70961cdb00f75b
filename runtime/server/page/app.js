// The page's entry: puts the parts together.
import { fillAnswer } from "./answer.js";
import { Conversation } from "./conversation.js";
import { ConversationView, keyForm } from "./conversation_view.js";
import { figuresView } from "./figures.js";
import { parametersForm } from "./parameters.js";
import { watchServer } from "./server_state.js";

const DRAW_MS = 100; // between drawings of a growing answer: the model may run on the same cores
const $ = (id) => document.getElementById(id);
let model; // as far as known
let stopping = null; // the AbortController of the answer on its way
let editedQuestion = -1; // the place of the question that is being edited
const conversation = new Conversation();
const view = new ConversationView($("messages"), $("scroller"), $("jump"), { regenerate, edit, useKey });
const parameters = parametersForm($("parameters"));
const figures = figuresView();
const server = watchServer(showServer, (text) => (text === null ? figures.clear() : figures.show(text)));

function showServer(state) {
  model = state.models[0] ?? model;
  const words = { ready: model, key: "API key needed", loading: "not ready yet", network: "not reachable" };
  $("server").dataset.kind = state.kind;
  $("model").textContent = words[state.kind] ?? "not well";
  $("server").title = state.message ?? "The model that answers";
  if (model) $("empty-model").textContent = model;
  $("empty-trouble").replaceChildren(...(state.message ? [state.message] : []), ...(state.kind === "key" ? [keyForm(useKey)] : []));
}

function show() {
  view.show(conversation.messages);
  $("empty").hidden = conversation.messages.length > 0;
  $("new-chat").disabled = conversation.messages.length === 0;
  document.body.classList.toggle("answering", stopping !== null);
  $("send").hidden = stopping !== null;
  $("stop").hidden = stopping === null;
  $("editing").hidden = editedQuestion < 0;
}

async function ask(question, from) {
  const mine = new AbortController();
  stopping?.abort();
  stopping = mine;
  editedQuestion = -1;
  const answer = conversation.ask(question, from);
  show();
  view.follow();
  view.update(answer, true);
  keepFocus();
  say("Answering");
  const request = { model, messages: conversation.toSend(parameters.system()), ...parameters.values() };
  let timer = 0;
  await fillAnswer(answer, request, mine.signal, () => {
    timer ||= setTimeout(() => {
      timer = 0;
      if (stopping === mine) view.update(answer, true);
    }, DRAW_MS);
  });
  if (stopping !== mine) return; // another conversation has begun meanwhile
  stopping = null;
  conversation.keep();
  view.update(answer);
  show();
  say(answer.error ? "" : mine.signal.aborted ? "Stopped" : "Answered");
}

function send() {
  const question = $("question").value.trim();
  if (!question || stopping) return;
  if (!parameters.isValid()) return openPanel(true);
  const from = editedQuestion < 0 ? undefined : editedQuestion;
  write("");
  ask(question, from);
}

function regenerate() {
  const at = conversation.lastQuestion;
  if (at >= 0 && !stopping) ask(conversation.messages[at].content, at);
}

function edit() {
  editedQuestion = conversation.lastQuestion;
  write(conversation.messages[editedQuestion].content);
  show();
}

function stopEditing() {
  editedQuestion = -1;
  write("");
  show();
}

function useKey(key) {
  server.useKey(key);
  regenerate();
}

function newChat() {
  stopping?.abort();
  stopping = null;
  conversation.clear();
  stopEditing();
}

function write(text) {
  $("question").value = text;
  $("question").focus();
  fitQuestion();
}

// A button that has just gone takes the focus with it. Touch screens are left alone: there a focus brings up the keyboard.
function keepFocus() {
  if (document.activeElement === document.body && matchMedia("(pointer: fine)").matches) $("question").focus();
}

function fitQuestion() {
  $("question").style.height = "auto";
  $("question").style.height = `${$("question").scrollHeight}px`;
}

function say(text) {
  $("said").textContent = text; // to screen readers
}

function openPanel(isOpen) {
  $("panel").hidden = !isOpen;
  $("open-panel").setAttribute("aria-expanded", String(isOpen));
  if (isOpen) $("panel").querySelector("textarea").focus();
  else $("open-panel").focus();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("question").addEventListener("input", fitQuestion);
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  if (stopping) stopping.abort();
  else if (editedQuestion >= 0) stopEditing();
  else if (!$("panel").hidden) openPanel(false);
});
$("stop").addEventListener("click", () => stopping?.abort());
$("new-chat").addEventListener("click", newChat);
$("cancel-edit").addEventListener("click", stopEditing);
$("open-panel").addEventListener("click", () => openPanel($("panel").hidden));
$("close-panel").addEventListener("click", () => openPanel(false));
for (const button of document.querySelectorAll("#examples button")) button.addEventListener("click", () => ask(button.textContent));
window.addEventListener("pagehide", () => conversation.keep());

show();
$("question").focus();
