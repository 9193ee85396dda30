// What scripts add to the page, which can be read without them: local times, news as they come, keys, and marks that
// are sent without loading the page anew. All pieces of HTML come from the server, which escapes what is in them.
"use strict";

const $ = id => document.getElementById(id);
const pad = number => String(number).padStart(2, "0");

// ---- times

function day(date) { return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`; }
function clock(date) { return `${pad(date.getHours())}:${pad(date.getMinutes())}`; }

function localise(root) {
  for (const time of root.querySelectorAll("time")) {
    const date = new Date(time.dateTime);
    time.title = time.textContent;
    time.textContent = `${day(date)} ${clock(date)}:${pad(date.getSeconds())}`;
  }
}

function localFilter(form) {  // the server reads and writes UTC
  for (const field of [form.since, form.until]) {
    if (!field.value) continue;
    const date = new Date(field.value + "Z");
    field.value = `${day(date)}T${clock(date)}`;
  }
  for (const hint of form.querySelectorAll(".utc")) hint.hidden = true;
  form.addEventListener("submit", event => {
    event.preventDefault();
    const given = new FormData(form), query = new URLSearchParams();
    for (const [name, value] of given) {
      if (value) query.set(name, name === "since" || name === "until" ? new Date(value).toISOString().slice(0, 16) : value);
    }
    location.href = `/?${query}#events`;
  });
}

// ---- pieces that replace others

function element(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  localise(template.content);
  return template.content.firstElementChild;
}

function isBeingEdited(old) {
  return [...old.querySelectorAll("textarea, input, select")].some(field => field === document.activeElement
    || ("defaultValue" in field ? field.value !== field.defaultValue : !field.selectedOptions[0]?.defaultSelected));
}

function swap(old, html, sent) {  // `sent`: a piece whose fields the server has now
  const fresh = element(html);
  if (old.dataset.stamp === fresh.dataset.stamp || old !== sent && isBeingEdited(old)) return old;
  const focus = old.contains(document.activeElement) ? document.activeElement.dataset.focus : undefined;
  old.replaceWith(fresh);
  if (focus) fresh.querySelector(`[data-focus="${focus}"]`)?.focus();
  return fresh;
}

function arrange(list, html, order) {
  const now = new Map([...list.children].map(child => [child.dataset.key, child]));
  for (const [key, text] of Object.entries(html)) {
    if (now.has(key)) now.set(key, swap(now.get(key), text));
    else if (order) now.set(key, element(text));
  }
  if (!order) return;
  for (const [key, child] of now) if (!order.includes(key)) child.remove();
  let place = list.firstElementChild;
  for (const key of order) {
    const child = now.get(key);
    if (child === place) place = place.nextElementSibling;
    else if (child) list.insertBefore(child, place);
  }
}

function apply(news, sent) {
  for (const [name, { html, order }] of Object.entries(news)) {
    if (name !== "parts") {
      if ($(name)) arrange($(name), html, order);
    } else {
      for (const [id, text] of Object.entries(html)) if ($(id)) swap($(id), text, sent);
    }
  }
}

// ---- news from the server

const RETRY = 5000;  // ms
let source = null, timer = 0;

function tell(text) { if ($("told").textContent !== text) $("told").textContent = text; }
function forget(text) { if ($("told").textContent === text) tell(""); }

function listen() {
  if (source || document.hidden || !document.body.dataset.updates) return;
  clearTimeout(timer);
  source = new EventSource(document.body.dataset.updates);
  source.onopen = () => tell("");
  source.onmessage = message => apply(JSON.parse(message.data));
  source.onerror = () => {
    tell("Not connected; trying again");
    if (source?.readyState !== EventSource.CLOSED) return;  // else it tries by itself
    source = null;
    timer = setTimeout(listen, RETRY);
  };
}

function pause() {
  source?.close();
  source = null;
}

document.addEventListener("visibilitychange", () => document.hidden ? pause() : listen());
addEventListener("pagehide", pause);
addEventListener("pageshow", listen);

// ---- what is sent

async function send(form, button) {
  const fields = new URLSearchParams(new FormData(form));
  if (button.name) fields.set(button.name, button.value);
  try {
    const answer = await fetch(button.getAttribute("formaction"),
      { method: "POST", body: fields, headers: { Accept: "application/json" } });
    if (!answer.ok) return tell(await answer.text());
    apply(await answer.json(), button.closest("[data-stamp]"));
    tell("Saved");
    setTimeout(forget, 4000, "Saved");
  } catch {
    tell("Not saved: no connection");
  }
}

document.addEventListener("submit", event => {
  const button = event.submitter;
  if (event.target.id !== "post" || !button || button.getAttribute("formaction") === "/logout") return;
  event.preventDefault();
  send(event.target, button);
});

// ---- keys

function step(direction) {
  const rows = [...$("events").children], at = rows.indexOf(document.activeElement.closest("li"));
  rows[at + direction]?.querySelector("a").focus();
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
  if (!$("events")) return;
  const glyph = { s: "star", r: "right", w: "wrong" }[event.key];
  const row = document.activeElement.closest(".event");
  if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1);
  else if (glyph && row) row.querySelector(`button.${glyph}`).click();
  else return;
  event.preventDefault();
});

// ---- at the beginning

localise(document);
$("zone").textContent = `Times are in ${Intl.DateTimeFormat().resolvedOptions().timeZone}.`;
if ($("filter")) localFilter($("filter"));
if ($("keys")) $("keys").hidden = !$("events").childElementCount;
$("clip")?.addEventListener("error", () => { if ($("unplayable")) $("unplayable").hidden = false; });
listen();
