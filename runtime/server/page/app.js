// The page's entry: puts the parts together.
import { fillAnswer } from "./answer.js";
import { readModelDefaults } from "./api.js";
import { Conversations } from "./conversations.js";
import { ConversationView, keyForm } from "./conversation_view.js";
import { ConversationsView } from "./conversations_view.js";
import { figuresView } from "./figures.js";
import { parametersForm } from "./parameters.js";
import { sidePanels } from "./side_panels.js";
import { watchServer } from "./server_state.js";

const DRAW_MS = 100; // between drawings of a growing answer: the model may run on the same cores
const $ = (id) => document.getElementById(id);
let model; // as far as known
let modelDefaults = null; // the promise of its sampling parameters
let editedQuestion = -1; // the place of the question that is being edited
const running = new Map(); // id of a conversation -> the AbortController of its answer on the way
const conversations = new Conversations();
let conversation = conversations.find(location.hash.slice(1));
const view = new ConversationView($("messages"), $("scroller"), $("jump"), { regenerate, goOn, editQuestion, keepAnswer, useKey });
const list = new ConversationsView($("conversations"), conversations, { open, rename, remove: removeConversation });
const parameters = parametersForm($("parameters"));
const panels = sidePanels();
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
  if (state.kind === "ready") useModelDefaults();
}

// An answer waits for them, so that the first question is asked as the later ones are.
function useModelDefaults() {
  modelDefaults = readModelDefaults().then(parameters.useModelDefaults, () => (modelDefaults = null));
}

function show() {
  const isRunning = running.has(conversation.id);
  view.show(conversation.messages);
  list.show(conversation, running);
  $("empty").hidden = conversation.messages.length > 0;
  $("new-chat").disabled = conversation.messages.length === 0;
  document.body.classList.toggle("answering", isRunning);
  $("send").hidden = isRunning;
  $("stop").hidden = !isRunning;
  $("editing").hidden = editedQuestion < 0;
  document.title = conversation.messages.length ? `${conversation.title} – cupola` : "cupola";
}

async function ask(question, from) {
  editedQuestion = -1;
  await fill(conversation.ask(question, from), false);
}

/** Lets the server fill an answer, from its beginning or from where it stands, while the user may look at other conversations. */
async function fill(answer, isContinuing) {
  const mine = conversation;
  const stop = new AbortController();
  const isShown = () => mine === conversation;
  running.set(mine.id, stop);
  mine.changed = Date.now();
  keep(mine);
  history.replaceState(null, "", `#${mine.id}`);
  show();
  view.follow();
  view.update(answer, true);
  keepFocus();
  say("Answering");
  await modelDefaults;
  const body = { model, messages: mine.toSend(parameters.system(), isContinuing), ...parameters.values() };
  if (isContinuing) Object.assign(body, { continue_final_message: true, add_generation_prompt: false });
  let timer = 0;
  await fillAnswer(answer, body, stop.signal, () => {
    timer ||= setTimeout(() => {
      timer = 0;
      if (isShown() && running.get(mine.id) === stop) view.update(answer, true);
    }, DRAW_MS);
  });
  running.delete(mine.id);
  if (!conversations.byId.has(mine.id)) return; // it was deleted meanwhile
  keep(mine);
  if (isShown()) view.update(answer);
  show();
  if (isShown()) say(answer.error ? "" : stop.signal.aborted ? "Stopped" : "Answered");
}

function keep(changed) {
  const isKept = conversations.keep(changed);
  $("not-kept").hidden = isKept;
}

function send() {
  const question = $("question").value.trim();
  if (!question || running.has(conversation.id)) return;
  if (!parameters.isValid()) return panels.open("panel");
  const from = editedQuestion < 0 ? undefined : editedQuestion;
  write("");
  ask(question, from);
}

function regenerate() {
  const at = conversation.lastQuestion;
  if (at >= 0 && !running.has(conversation.id)) ask(conversation.messages[at].content, at);
}

function goOn() {
  if (!running.has(conversation.id) && parameters.isValid()) fill(conversation.lastAnswer, true);
}

function editQuestion(message) {
  editedQuestion = conversation.messages.indexOf(message);
  write(message.content);
  show();
}

function keepAnswer(answer, text) {
  answer.content = text;
  answer.note = "Edited";
  keep(conversation);
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

function open(other) {
  conversation = other;
  history.replaceState(null, "", other.messages.length ? `#${other.id}` : location.pathname + location.search);
  panels.closeIfOver("conversations");
  stopEditing();
  for (const message of other.messages) view.update(message, running.has(other.id) && message === other.lastAnswer);
  view.follow();
}

function rename(renamed, name) {
  renamed.name = name;
  keep(renamed);
  show();
}

function removeConversation(removed) {
  running.get(removed.id)?.abort();
  conversations.remove(removed);
  if (removed === conversation) open(conversations.find(""));
  else show();
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
  if (running.has(conversation.id)) running.get(conversation.id).abort();
  else if (editedQuestion >= 0) stopEditing();
  else panels.closeTop();
});
$("stop").addEventListener("click", () => running.get(conversation.id)?.abort());
$("new-chat").addEventListener("click", () => open(conversations.find("")));
$("cancel-edit").addEventListener("click", stopEditing);
for (const button of document.querySelectorAll("#examples button")) button.addEventListener("click", () => ask(button.textContent));
window.addEventListener("hashchange", () => open(conversations.find(location.hash.slice(1))));
window.addEventListener("storage", () => {
  conversations.reload(conversation);
  show();
});
window.addEventListener("pagehide", () => running.has(conversation.id) && keep(conversation));

show();
$("question").focus();
