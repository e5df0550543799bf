// Says what went wrong when a part of a page could not be brought up to date; the page stays as it is.
(() => {
  const SILENCE = "The explorer does not answer, so this page was not brought up to date. Try again in a moment.";
  const SECONDS = 12;
  let timer;

  // What an answer says, without its markup: it comes from the explorer, but may quote what people typed.
  function words(text) {
    const parts = new DOMParser().parseFromString(text ?? "", "text/html").querySelectorAll("[role=alert] p");
    return [...parts].map((part) => part.textContent.trim()).join(" ");
  }

  function say(message) {
    let toast = document.getElementById("toast");
    if (!toast) {
      toast = document.createElement("div");
      toast.id = "toast";
      toast.setAttribute("role", "alert");
      document.body.append(toast);
    }
    const close = document.createElement("button");
    close.type = "button";
    close.className = "plain";
    close.textContent = "Close";
    close.addEventListener("click", () => toast.remove());
    const sentence = document.createElement("p");
    sentence.textContent = message;
    toast.replaceChildren(sentence, close);
    clearTimeout(timer);
    timer = setTimeout(() => toast.remove(), 1000 * SECONDS);
  }

  function concerns(event) {
    return event.target.closest?.("#browser, #contexts");
  }

  document.addEventListener("htmx:response:error", (event) => {
    if (!concerns(event)) return;
    const { response, text } = event.detail.ctx;
    say(words(text) || `The explorer answered with an error (${response.status}), so this page is as it was.`);
  });
  document.addEventListener("htmx:error", (event) => {
    if (concerns(event)) say(SILENCE);
  });
})();
