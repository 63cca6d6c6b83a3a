"use strict";

const here = new URL(".", location.href).href;
document.getElementById("example").textContent =
  `curl ${here}generate -H 'Content-Type: application/json' \\
  -d '{"prompt": "a small red circle", "num": 2, "seed": 0}' \\
  | python3 -c 'import base64, json, sys; open("image.png", "wb").write(base64.b64decode(json.load(sys.stdin)["images"][0]))'`;

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function fields(schema, schemas) {
  const name = schema?.$ref?.split("/").pop();
  if (!name) return [];
  const rows = Object.entries(schemas[name].properties).flatMap(([field, about]) => [
    make("dt", {}, make("code", { textContent: field })),
    make("dd", { textContent: [about.description, "default" in about ? `Default: ${JSON.stringify(about.default)}.` : ""].join(" ") }),
  ]);
  return [make("dl", {}, ...rows)];
}

fetch("openapi.json").then((response) => response.json()).then((api) => {
  const sections = Object.entries(api.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => make("section", {},
      make("h2", {}, make("code", { textContent: `${method.toUpperCase()} ${path}` })),
      make("p", { textContent: operation.description }),
      ...(operation.requestBody
        ? [make("h3", { textContent: "Takes" }), ...fields(operation.requestBody.content["application/json"].schema, api.components.schemas)]
        : []),
      make("h3", { textContent: "Answers" }),
      ...fields(operation.responses["200"].content["application/json"].schema, api.components.schemas))));
  document.getElementById("operations").append(...sections);
});
