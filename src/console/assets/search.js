// Says that a search runs: the page comes when it is done.
"use strict";
document.getElementById("search").addEventListener("submit", () => {
  const busy = document.getElementById("busy");
  const since = Date.now();
  const say = () => { busy.textContent = `Searching… ${Math.round((Date.now() - since) / 1000)} s`; };
  say();
  setInterval(say, 1000);
});
