// Small additions to the pages, which work without them.
"use strict";

// A checkbox in the head of a table selects all rows.
document.querySelectorAll("[data-select-all]").forEach((all) => {
  all.hidden = false;
  all.addEventListener("change", () => {
    const name = all.dataset.selectAll;
    all.form.querySelectorAll(`input[type=checkbox][name="${name}"]`).forEach((box) => { box.checked = all.checked; });
  });
});

// The part that is loaded again and again can be kept as it is, and is not replaced while it has the focus.
const updates = document.querySelector("[data-updates]");
const updateProblem = document.querySelector("[data-update-problem]");
if (updates) {
  updates.hidden = false;
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden || !updates.querySelector("input").checked) {
      event.preventDefault();
    }
  });
  const showProblem = () => { updateProblem.textContent = "Not up to date: the server does not answer."; };
  document.addEventListener("htmx:sendError", showProblem);
  document.addEventListener("htmx:responseError", showProblem);
  document.addEventListener("htmx:afterSwap", () => { updateProblem.textContent = ""; });
}
document.addEventListener("htmx:beforeSwap", (event) => {
  // An estimate that says what is wrong has another status, and is shown as well.
  if (event.detail.xhr.status === 422) {
    event.detail.shouldSwap = true;
    event.detail.isError = false;
  }
  if (event.detail.target.id === "live" && event.detail.target.contains(document.activeElement)) {
    event.detail.shouldSwap = false;
  }
});

// The events of a job load a part of its page again, and all of it when the job has ended. A page in the background has no
// stream: browsers allow few connections to a host.
const RETRY_MS = 5000;
document.querySelectorAll("[data-events]").forEach((element) => {
  let source = null;
  let hasEnded = false;
  const close = () => {
    source?.close();
    source = null;
    element.hidden = true;
  };
  const open = () => {
    element.hidden = false;
    source = new EventSource(element.dataset.events);
    const change = () => htmx.trigger(element, "job-changed");
    const end = () => {
      hasEnded = true;
      close();
      htmx.ajax("GET", location.pathname, { target: "#job", select: "#job", swap: "outerHTML" });
    };
    source.addEventListener("assets.generation.started", change);
    source.addEventListener("assets.generation.progress", change);
    source.addEventListener("assets.generation.completed", end);
    source.addEventListener("assets.generation.failed", end);
    source.addEventListener("error", () => {
      // Otherwise the browser connects again by itself.
      if (source?.readyState === EventSource.CLOSED) {
        close();
        setTimeout(update, RETRY_MS);
      }
    });
  };
  const update = () => {
    close();
    if (!document.hidden && !hasEnded) {
      open();
    }
  };
  document.addEventListener("visibilitychange", update);
  update();
});
