"use strict";

const element = (id) => document.getElementById(id);
const pngOf = (base64) => `data:image/png;base64,${base64}`;
let small = false; // images of few pixels are enlarged as they are
let shown = null; // the answer that is on the page

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function say(text, wrong = false) {
  element("status").textContent = text;
  element("status").classList.toggle("wrong", wrong);
}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer");
  }
  const answer = await response.json().catch(() => ({ error: `the server answers ${response.status}` }));
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function request() {
  const body = {
    prompt: element("prompt").value,
    num: Number(element("num").value),
    seed: Number(element("seed").value),
    truncation: Number(element("truncation").value),
    negative_prompt: element("negative_prompt").value,
    attention: true,
  };
  if (element("best_of").value) body.best_of = Number(element("best_of").value);
  return body;
}

async function draw() {
  element("draw").disabled = true;
  say("drawing …");
  const body = request();
  const started = performance.now();
  try {
    const answer = await ask("generate", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    show(body, answer);
    const took = `drawn in ${((performance.now() - started) / 1000).toFixed(2)} s`;
    say([took, ...answer.notes].join(". "), answer.notes.length > 0);
  } catch (error) {
    say(error.message, true);
  } finally {
    element("draw").disabled = false;
  }
}

function show(body, answer) {
  shown = answer;
  element("images").replaceChildren(...answer.images.map((image, place) => figure(body, answer, image, place)));
  const words = answer.keywords.map((word, number) => {
    const button = make("button", { type: "button", textContent: word });
    button.setAttribute("aria-pressed", "false");
    button.addEventListener("click", () => look(button.getAttribute("aria-pressed") === "true" ? null : number));
    return button;
  });
  element("keywords").replaceChildren(...(words.length ? ["Where it looks:", ...words] : []));
  element("results").hidden = false;
}

function figure(body, answer, image, place) {
  const picture = make("img", { src: pngOf(image), alt: `${body.prompt}, image ${place + 1}` });
  const name = body.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60);
  const link = make("a", {
    href: pngOf(image),
    download: `${name}-seed-${body.seed}-${answer.numbers[place]}.png`,
    textContent: "Download",
  });
  const score = make("span", { textContent: `score ${answer.scores[place].toFixed(2)}` });
  score.title = "the discriminator's logit of the image under the prompt";
  return make("figure", {}, make("div", { className: small ? "picture small" : "picture" }, picture),
    make("figcaption", {}, score, link));
}

// The attention of one keyword over every image, or of none.
function look(number) {
  [...element("keywords").querySelectorAll("button")].forEach((button, own) =>
    button.setAttribute("aria-pressed", String(own === number)));
  document.querySelectorAll("#images .picture").forEach((picture, place) => {
    picture.querySelector("canvas")?.remove();
    if (number !== null) picture.append(heat(shown.attention[place][number]));
  });
}

function heat(map) {
  const rows = map.length, columns = map[0].length;
  const cells = make("canvas", { width: columns, height: rows });
  const context = cells.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  // Up to three times the even share, or the highest: attention that is nearly even looks so.
  const top = Math.max(3 / (rows * columns), ...map.flat());
  map.flat().forEach((share, cell) => pixels.data.set([...color(share / top), 255], 4 * cell));
  context.putImageData(pixels, 0, 0);
  return cells;
}

// Black, violet, orange, yellow: a few stops of the colour map "inferno".
const STOPS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
function color(level) {
  const at = Math.min(Math.max(level, 0), 1) * (STOPS.length - 1);
  const low = Math.min(Math.floor(at), STOPS.length - 2);
  return STOPS[low].map((value, channel) => value + (at - low) * (STOPS[low + 1][channel] - value));
}

function example({ prompt, image }) {
  const picture = make("img", { src: pngOf(image), alt: "" });
  const button = make("button", { type: "button", className: small ? "small" : "" }, picture, prompt);
  button.addEventListener("click", () => {
    element("prompt").value = prompt;
    element("prompt").scrollIntoView({ block: "center" });
    draw();
  });
  return button;
}

function tell(about) {
  small = about.image_size <= 128;
  document.title = `${about.name}: text to image`;
  element("name").textContent = about.name;
  element("summary").textContent = `${about.image_size} x ${about.image_size} pixels · model ${about.model.slice(0, 12)}`;
  element("num").max = about.max_num;
  element("best_of").max = about.max_candidates;
  element("gallery").replaceChildren(...about.examples.map(example));
  const facts = Object.entries(about.facts).flatMap(([name, value]) => [
    make("dt", { textContent: name }),
    make("dd", { textContent: Number.isInteger(value) || typeof value !== "number" ? value : value.toFixed(3) }),
  ]);
  element("facts").replaceChildren(...facts);
  element("card").textContent = about.card;
}

element("form").addEventListener("submit", (event) => {
  event.preventDefault();
  draw();
});
element("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    element("form").requestSubmit();
  }
});
element("reseed").addEventListener("click", () => {
  element("seed").value = Math.floor(Math.random() * 2 ** 31);
  element("form").requestSubmit();
});
element("truncation").addEventListener("input", () => {
  element("truncation-value").textContent = Number(element("truncation").value).toFixed(2);
});
ask("about").then(tell).catch((error) => say(error.message, true));
