// A button that asks the bastion whether something is whole, and shows the answer as text.
"use strict";
(() => {
  const verify = document.querySelector(".verify");
  if (!verify) return;
  const button = verify.querySelector("button");
  const verdict = verify.querySelector("#verdict");
  button.addEventListener("click", async () => {
    button.disabled = true;
    const since = Date.now();
    const say = () => { verdict.textContent = `Verifying… ${Math.round((Date.now() - since) / 1000)} s`; };
    say();
    verdict.className = "hint";
    const ticking = setInterval(say, 1000);
    try {
      const answer = await fetch(verify.dataset.at, { credentials: "same-origin" });
      if (!(answer.headers.get("content-type") || "").startsWith("application/json")) throw new Error(answer.status === 401 ? "You are signed out." : await answer.text());
      const found = await answer.json();
      verdict.textContent = found.says;
      verdict.className = found.ok ? "good" : "bad";
    } catch (error) {
      verdict.textContent = `Not verified: ${error.message}`;
      verdict.className = "bad";
    } finally {
      clearInterval(ticking);
      button.disabled = false;
    }
  });
})();
