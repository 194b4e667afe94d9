// Questions before something changes, asked by the browser's own modal element: it keeps the focus inside and gives it back.

import { h } from "./dom.ts";

/** Resolves with the values of the fields, or null where it was closed without. */
export function askFor(
  title: string,
  text: string,
  fields: readonly {
    readonly name: string;
    readonly label: string;
    readonly value: string;
    readonly hint: string;
    readonly isNeeded: boolean;
  }[],
  button: string,
): Promise<Readonly<Record<string, string>> | null> {
  const inputs = fields.map(({ name, value, isNeeded }) =>
    h("input", { name, value, required: isNeeded, autocomplete: "off", spellcheck: "false", id: `field-${name}` }),
  );
  const rows = fields.flatMap(({ name, label, hint }, i) => [
    h("label", { for: `field-${name}` }, label),
    inputs[i]!,
    h("p", { class: "quiet" }, hint),
  ]);
  const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id: "dialog-title" }, title),
    h("p", {}, text),
    ...rows,
    h("div", { class: "actions" }, cancel, h("button", { type: "submit", class: "main", value: "yes" }, button)),
  );
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const values = Object.fromEntries(inputs.map(({ name, value }) => [name, value.trim()]));
      dialog.remove();
      resolve(dialog.returnValue === "yes" ? values : null);
    });
    dialog.showModal();
  });
}

export const confirm = async (title: string, text: string, button: string): Promise<boolean> =>
  (await askFor(title, text, [], button)) !== null;
