"use strict";
const runs = document.getElementById("runs");
const live = document.getElementById("live");
const said = document.getElementById("said");
let version = "";

function describe(evaluators) {
  if (evaluators.length === 0) return "no evaluator is running";
  const busy = evaluators.filter((e) => e.doing);
  if (busy.length === 0) return "waiting for checkpoints";
  return busy.map((e) => `evaluating ${e.doing.run} step ${e.doing.step.toLocaleString()}`).join(", ");
}

function queueRows(status) {
  const waiting = status.requested.concat(...status.runs.map((run) => run.queue));
  const seen = new Set();
  return waiting.filter((job) => {
    const key = `${job.run}/${job.checkpoint}/${job.protocol}`;
    if (job.final || seen.has(key)) return false;
    seen.add(key);
    return true;
  });
}

function showQueue(status) {
  for (const body of document.querySelectorAll("[data-queue]")) {
    const rows = queueRows(status).filter((job) => job.run === body.dataset.queue);
    body.closest(".queue").hidden = rows.length === 0;
    body.replaceChildren(...rows.map((job) => {
      const row = document.createElement("tr");
      for (const text of [job.step.toLocaleString(), job.protocol]) {
        row.insertCell().textContent = text;
      }
      const mark = document.createElement("span");
      mark.className = `status ${job.status}`;
      mark.textContent = job.status + (job.requested ? ", asked for" : "");
      row.insertCell().append(mark);
      row.insertCell().textContent = job.reason;
      return row;
    }));
  }
}

async function refresh() {
  try {
    const status = await (await fetch("/api/status")).json();
    live.textContent = describe(status.evaluators);
    live.className = status.evaluators.length ? "ok" : "bad";
    if (status.version !== version) {
      const chosen = new Map([...runs.querySelectorAll("select, input[list]")].map((s) => [s.id, s.value]));
      const opened = [...runs.querySelectorAll("details[open]")].map((part) => part.id);
      runs.innerHTML = await (await fetch("/runs")).text();
      for (const [id, value] of chosen) {
        const field = document.getElementById(id);
        if (field && (!field.options || [...field.options].some((o) => o.value === value))) field.value = value;
      }
      for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
      version = status.version;
    }
    showQueue(status);
  } catch {
    live.textContent = "the page's server is away";
    live.className = "bad";
  }
}

runs.addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = new FormData(event.target);
  const order = { run: form.get("run"), protocol: form.get("protocol"), step: Number(form.get("step")) };
  const answer = await fetch("/api/evaluate", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(order),
  });
  const body = await answer.json();
  if (!answer.ok) said.textContent = body.detail;
  else if (body.status === "done") said.textContent = `${body.run} step ${body.step} has that number already.`;
  else said.textContent = `${body.run} step ${body.step} is queued under ${body.protocol}.`;
  refresh();
});

refresh();
setInterval(refresh, 2000);
