// One session: its picture in the player, what was done beside it. Everything from the recording is shown as text.
"use strict";
(() => {
  const LONGEST = 96 * 1024 * 1024;
  // Seconds into a recording at which it waits to be played: there is something to see by then.
  const FIRST_LOOK = 0.5;
  const stage = document.getElementById("stage");
  const holder = document.getElementById("player");
  const waiting = document.getElementById("waiting");
  const list = document.getElementById("marks");
  const none = document.getElementById("no-marks");
  const at = `/sessions/${encodeURIComponent(stage.dataset.session)}`;
  const live = stage.dataset.live === "true";
  const look = { fit: "both", theme: "asciinema", terminalLineHeight: 1.25, controls: true };
  let player = null, marks = [], text = null, current = Number(stage.dataset.from) || 0;

  const clock = (seconds) => {
    const whole = Math.max(0, Math.floor(seconds));
    return `${Math.floor(whole / 3600)}:${String(Math.floor(whole / 60) % 60).padStart(2, "0")}:${String(whole % 60).padStart(2, "0")}`;
  };
  const seconds = (typed) => {
    const spans = /^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?$/.exec(typed);
    if (typed && spans && spans[0]) return (Number(spans[1]) || 0) * 3600 + (Number(spans[2]) || 0) * 60 + (Number(spans[3]) || 0);
    if (!/^\d+(:\d{1,2}){0,2}(\.\d+)?$/.test(typed)) return null;
    return typed.split(":").reduce((sum, part) => sum * 60 + Number(part), 0);
  };
  const fail = (why) => { waiting.textContent = why; holder.replaceChildren(waiting); };

  const addMark = (time, label) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const when = document.createElement("time");
    const deed = document.createElement("bdi");
    button.type = "button";
    when.textContent = clock(time);
    deed.className = "deed";
    deed.textContent = label;
    button.append(when, deed);
    if (live) button.disabled = true;
    else button.addEventListener("click", () => seek(time));
    item.append(button);
    list.append(item);
    none.hidden = true;
  };

  // The player cuts pauses short, so its own clock runs ahead of the session's: both ways are kept in one table.
  const idleLimit = () => Number(document.getElementById("idle").value) || undefined;
  let table = [];
  const makeTable = (times) => {
    const limit = idleLimit();
    table = [];
    let shown = 0, before = 0;
    for (const time of times) {
      const pause = time - before;
      shown += limit === undefined ? pause : Math.min(pause, limit);
      table.push([time, shown]);
      before = time;
    }
  };
  const between = (value, from, to) => {
    if (table.length === 0) return value;
    let low = 0, high = table.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (table[middle][from] < value) low = middle + 1; else high = middle;
    }
    const next = table[low], last = low > 0 ? table[low - 1] : [0, 0];
    if (value >= next[from]) return next[to];
    const span = next[from] - last[from];
    // Inside a pause that was cut short, the end of the pause is meant.
    return span > 0 ? Math.min(next[to], last[to] + (value - last[from])) : next[to];
  };
  const ofSession = (shown) => between(shown, 1, 0);
  const ofPlayer = (time) => between(time, 0, 1);

  const seek = async (time) => {
    if (!player) return;
    current = time;
    await player.seek(ofPlayer(time));
    showCurrent();
  };
  const showCurrent = () => {
    let last = -1;
    marks.forEach(([time], index) => { if (time <= current + 0.01) last = index; });
    [...list.children].forEach((item, index) => {
      if (index === last) item.setAttribute("aria-current", "true"); else item.removeAttribute("aria-current");
    });
  };

  const start = (play) => {
    if (player) player.dispose();
    const events = text.split("\n");
    const times = [];
    for (const line of events.slice(1)) {
      const time = line.startsWith("[") ? parseFloat(line.slice(1)) : NaN;
      if (!Number.isNaN(time)) times.push(time);
    }
    makeTable(times);
    holder.replaceChildren();
    const begins = current > 0;
    player = AsciinemaPlayer.create({ data: text }, holder, {
      ...look, speed: Number(document.getElementById("speed").value), idleTimeLimit: idleLimit(),
      preload: true, autoPlay: play && !begins,
    });
    window.keyward = { player, seek, ofPlayer, ofSession };
    // No poster: the player forgets what it drew for one, and every screen that is sought after it lacks that part.
    if (begins || !play) {
      const sought = player.seek(begins ? ofPlayer(current) : FIRST_LOOK);
      if (play) sought.then(() => player.play());
    }
    showCurrent();
  };

  const load = async () => {
    const answer = await fetch(`${at}/tape`, { credentials: "same-origin" });
    if (!(answer.headers.get("content-type") || "").startsWith("application/x-asciicast")) {
      const why = answer.status === 401 ? "You are signed out. Reload the page." : await answer.text();
      none.textContent = "";
      return fail(why);
    }
    const reader = answer.body.getReader();
    const decoder = new TextDecoder();
    const pieces = [];
    let size = 0, cut = false;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      size += value.length;
      pieces.push(decoder.decode(value, { stream: true }));
      waiting.textContent = `Loading the recording… ${(size / 1e6).toFixed(1)} MB`;
      if (size > LONGEST) { cut = true; await reader.cancel(); break; }
    }
    text = pieces.join("");
    text = text.slice(0, text.lastIndexOf("\n") + 1);
    const lines = text.split("\n");
    let pictured = false;
    for (const line of lines) {
      if (line.includes(',"m",')) {
        const event = JSON.parse(line);
        if (event[1] === "m") { marks.push([event[0], event[2]]); addMark(event[0], event[2]); }
      }
      pictured = pictured || line.includes(',"o",');
    }
    if (marks.length === 0) none.textContent = "No command or file operation was noted.";
    if (cut) {
      const note = document.createElement("p");
      note.className = "fault";
      note.textContent = `Only the first ${Math.round(LONGEST / 1e6)} MB are shown here. All of it: sessions play ${stage.dataset.session}`;
      stage.before(note);
    }
    if (!pictured) {
      document.getElementById("controls").hidden = true;
      return fail("Nothing was shown on a screen in this session. What was done stands beside; what passed, in the ledger.");
    }
    start(false);
    setInterval(async () => {
      if (!player) return;
      current = ofSession(await player.getCurrentTime());
      showCurrent();
    }, 500);
  };

  const jump = (step) => {
    const target = step < 0
      ? marks.filter(([time]) => time < current - 1).pop() || [0]
      : marks.find(([time]) => time > current + 0.05);
    if (target) seek(target[0]);
  };
  const control = (id, kind, run) => document.getElementById(id).addEventListener(kind, run);

  // What the bastion tells as it happens, for the player.
  const happening = ({ dispatch }) => {
    let source, begun = performance.now(), rate = 0;
    const timing = () => ({ time: rate ? (performance.now() - begun) / 1000 : 0, rate, timestamp: performance.now() });
    const tick = (seconds, now) => {
      begun = performance.now() - seconds * 1000;
      rate = now;
      dispatch("timing", timing());
    };
    const end = (why) => {
      source.close();
      rate = 0;
      dispatch("ended", { message: why });
      const note = document.createElement("p");
      const again = document.createElement("a");
      note.className = "count";
      again.href = location.pathname;
      again.textContent = "Show the recording";
      note.append(`${why} `, again);
      stage.before(note);
    };
    return {
      play() {
        if (source) return true;
        dispatch("play");
        source = new EventSource(`${at}/live`);
        source.addEventListener("message", (message) => {
          const told = JSON.parse(message.data);
          if (!Array.isArray(told)) {
            dispatch("reset", { size: { cols: told.width, rows: told.height } });
            dispatch("playing");
            return;
          }
          const [time, code, data] = told;
          if (code === "o") dispatch("output", data);
          if (code === "r") {
            const [cols, rows] = data.split("x").map(Number);
            dispatch("resize", { cols, rows });
          }
          if (time > 0) { current = time; tick(time, 1); }
        });
        source.addEventListener("mark", (message) => {
          const [time, , label] = JSON.parse(message.data);
          marks.push([time, label]);
          addMark(time, label);
        });
        let refused = null;
        source.addEventListener("refused", (message) => { refused = JSON.parse(message.data).why; });
        source.addEventListener("missed", (message) => {
          addMark(current, `${JSON.parse(message.data).missed} pieces were left out: the browser was too slow`);
        });
        source.addEventListener("done", () => end(refused || "The session has ended."));
        source.addEventListener("error", () => {
          if (source.readyState === EventSource.CLOSED) end("The live view is not possible; the session may have ended.");
          else dispatch("loading");
        });
        return true;
      },
      stop() { if (source) source.close(); },
      getTiming: timing,
    };
  };

  const watch = () => {
    document.getElementById("controls").hidden = true;
    holder.replaceChildren();
    player = AsciinemaPlayer.create(happening, holder, { ...look, controls: "auto", autoPlay: true });
    window.keyward = { player };
  };

  if (live) {
    watch();
  } else {
    control("previous", "click", () => jump(-1));
    control("following", "click", () => jump(1));
    control("speed", "change", () => start(true));
    control("idle", "change", () => start(true));
    control("goto", "change", (event) => {
      const time = seconds(event.target.value.trim());
      event.target.setCustomValidity(time === null ? "Use 0:01:23, 83 or 1m23s" : "");
      event.target.reportValidity();
      if (time !== null) seek(time);
    });
    load().catch((error) => fail(`The recording could not be loaded whole: ${error.message}`));
  }
})();
