"use strict";
// The browser of samples. Whatever a model wrote reaches the page as text only: by textContent, never as markup.
(() => {
  const byId = (id) => document.getElementById(id);
  const source = byId("samples-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const PAGE = 5000; // tokens that are drawn at a time
  const NOTABLE = 12; // rows of the table of tokens of note
  const lineEnd = "\u21b5", tab = "\u21e5", nothing = "\u25cc";
  let shown = [], current = null, drawn = 0, here = -1;

  const element = (name, css, text) => {
    const made = document.createElement(name);
    if (css) made.className = css;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const figure = (value) => (value === null || value === undefined ? "not known" : String(value));
  const tokenText = (place) => data.strings[current.tokens[place]];
  const visible = (text) =>
    text === "" ? nothing : text.replaceAll("\n", `${lineEnd}\n`).replaceAll("\t", `${tab}\t`);
  // A row of a table or a sentence shows a token in one line, and its blanks.
  const quoted = (text) => (text === "" ? "no text of its own" : JSON.stringify(text));

  // ---- the scale, as megacov/monitor/overlays.py has it ----

  const overlay = () => data.overlays.find((each) => each.name === chosen("overlay"));
  const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
  const scale = () => overlay().scales[byId("scale").value];

  function level(value) {
    const { signed } = overlay();
    if (value === null) return 0;
    if (value < 0 && !signed) return 0;
    const size = scale().edges.filter((edge) => edge < Math.abs(value)).length;
    return value < 0 ? -size : size;
  }

  const css = (size) => (size === 0 ? "" : size < 0 ? `m${-size}` : `l${size}`);

  function tokenClass(place) {
    const parts = ["t"];
    if (current.values.selected[place]) parts.push("selected");
    if (!current.values.kept[place]) parts.push("left-out");
    if (overlay()) parts.push(css(level(current.values[overlay().name][place])));
    return parts.filter(Boolean).join(" ");
  }

  // ---- filters ----

  const bound = (id, missing) => (byId(id).value === "" ? missing : Number(byId(id).value));

  function isShown(sample) {
    const within = (value, name) => value >= bound(`${name}-low`, -Infinity) && value <= bound(`${name}-high`, Infinity);
    const ending = byId("ending").value;
    return (
      within(sample.step, "step") &&
      within(sample.reward, "reward") &&
      within(sample.length, "length") &&
      (ending === "" || (ending === "truncated") === sample.truncated)
    );
  }

  function label(sample) {
    const parts = [sample.title, `reward ${sample.reward}`, `${sample.length} tokens`];
    if (sample.truncated) parts.push("truncated");
    return parts.concat(sample.notable).join(" \u00b7 ");
  }

  function filter() {
    shown = data.samples.filter(isShown);
    byId("list").replaceChildren(...shown.map((sample, place) => new Option(label(sample), String(place))));
    const all = data.samples.length;
    byId("matches").textContent = `${shown.length} of ${all} sample${all === 1 ? "" : "s"} shown`;
    show(shown.includes(current) ? shown.indexOf(current) : 0);
  }

  // ---- one sample ----

  function show(place) {
    byId("sample").hidden = shown.length === 0;
    current = shown[place] ?? null;
    if (!current) return;
    byId("list").selectedIndex = place;
    byId("previous").disabled = place === 0;
    byId("next").disabled = place === shown.length - 1;
    byId("sample-title").textContent = current.title;
    byId("sample-facts").replaceChildren(
      ...current.facts.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", value)]),
    );
    byId("prompt").textContent = current.prompt;
    byId("answer").textContent = current.answer;
    drawResponse();
  }

  function drawResponse() {
    drawn = 0;
    here = -1;
    byId("token").textContent = "";
    byId("response").replaceChildren();
    const hasTokens = current.tokens !== null;
    byId("with-tokens").hidden = !hasTokens;
    byId("without-tokens").hidden = hasTokens;
    if (hasTokens) {
      drawMore();
    } else {
      byId("response").textContent = current.response;
      byId("more").hidden = true;
    }
    drawLegend();
    drawNotable();
  }

  function drawMore() {
    const end = Math.min(current.tokens.length, drawn + PAGE);
    const part = document.createDocumentFragment();
    for (; drawn < end; drawn++) part.append(element("span", tokenClass(drawn), visible(tokenText(drawn))));
    byId("response").append(part);
    byId("more").hidden = drawn === current.tokens.length;
    byId("more").textContent = `Show more: ${drawn} of ${current.tokens.length} tokens are shown`;
  }

  function recolour() {
    if (!current || current.tokens === null) return;
    Array.from(byId("response").children).forEach((span, place) => (span.className = tokenClass(place)));
    if (here >= 0) byId("response").children[here].classList.add("here");
    drawLegend();
    drawNotable();
  }

  function drawLegend() {
    const rows = overlay() ? scale().legend : [];
    byId("legend").replaceChildren(
      ...rows.map(([size, text]) => {
        const row = element("li");
        row.append(element("span", `t ${css(size)}`, ` ${size} `), ` ${text}`);
        return row;
      }),
    );
  }

  // The overlay without its colours: the tokens that it makes stand out most.
  function drawNotable() {
    const table = byId("notable");
    table.hidden = !overlay() || current.tokens === null;
    if (table.hidden) return;
    const { name, title: quantity, unit } = overlay();
    const values = current.values[name];
    const places = values
      .map((value, place) => place)
      .filter((place) => level(values[place]) !== 0)
      .sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]) || a - b);
    table.querySelector("caption").textContent =
      `Tokens of highest ${quantity}: ${Math.min(NOTABLE, places.length)} of ${places.length} that have a colour`;
    table.querySelector("th:last-child").textContent = unit ? `${quantity} (${unit})` : quantity;
    table.querySelector("tbody").replaceChildren(
      ...places.slice(0, NOTABLE).map((place) => {
        const row = element("tr");
        const head = element("th", "", quoted(tokenText(place)));
        head.scope = "row";
        row.append(head, element("td", "n", String(place)), element("td", "n", figure(values[place])));
        return row;
      }),
    );
  }

  function goTo(place) {
    const spans = byId("response").children;
    if (place < 0 || place >= drawn || current.tokens === null) return;
    if (here >= 0) spans[here].classList.remove("here");
    here = place;
    spans[here].classList.add("here");
    spans[here].scrollIntoView({ block: "nearest" });
    const { values } = current;
    byId("token").textContent =
      `Token ${here}, ${quoted(tokenText(here))}: log-prob ${figure(values.log_probs[here])}, ` +
      `entropy ${figure(values.entropy[here])}, covariance ${figure(values.covariance[here])}, ` +
      `mismatch ${figure(values.mismatch[here])}, ${values.selected[here] ? "selected" : "not selected"}, ` +
      `${values.kept[here] ? "kept" : "not kept"}`;
  }

  const moves = { ArrowRight: 1, ArrowLeft: -1, PageDown: 50, PageUp: -50 };

  function onKey(event) {
    if (current === null || current.tokens === null || drawn === 0) return;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    let place;
    if (event.key in moves) place = Math.max(0, Math.min(drawn - 1, here + moves[event.key]));
    else if (event.key === "Home") place = 0;
    else if (event.key === "End") place = drawn - 1;
    else return;
    event.preventDefault();
    goTo(place);
  }

  // ---- what a reader does ----

  for (const input of document.querySelectorAll("#filters input, #filters select")) input.addEventListener("input", filter);
  for (const input of document.querySelectorAll("#overlays input, #overlays select"))
    input.addEventListener("input", recolour);
  byId("clear").addEventListener("click", () => {
    for (const input of document.querySelectorAll("#filters input, #filters select")) input.value = "";
    filter();
  });
  byId("list").addEventListener("input", () => show(byId("list").selectedIndex));
  byId("previous").addEventListener("click", () => show(shown.indexOf(current) - 1));
  byId("next").addEventListener("click", () => show(shown.indexOf(current) + 1));
  byId("more").addEventListener("click", drawMore);
  byId("response").addEventListener("keydown", onKey);
  byId("response").addEventListener("click", (event) =>
    goTo(Array.prototype.indexOf.call(byId("response").children, event.target)),
  );
  byId("browser").hidden = false;
  filter();
})();
