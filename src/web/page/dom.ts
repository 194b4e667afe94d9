// Elements, made and changed without ever parsing text as HTML: names and data are text, whatever is in them.

type Child = Node | string | null;
type Props = Readonly<Record<string, string | number | boolean | null | ((event: never) => void)>>;

/** An element with attributes (true: present; null and false: absent), `on...` listeners, and children. */
export function h<K extends keyof HTMLElementTagNameMap>(tag: K, props: Props = {}, ...children: readonly Child[]) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props))
    if (typeof value === "function") element.addEventListener(name.slice(2), value as EventListener);
    else setAttribute(element, name, value);
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function setAttribute(element: Element, name: string, value: string | number | boolean | null): void {
  if (value === null || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
}

/** Changes the document only where the text is another. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** A group of buttons of which one is chosen; `chosen` is called with its value. */
export function choice<T extends string>(
  label: string,
  options: readonly (readonly [value: T, text: string])[],
  first: T,
  chosen: (value: T) => void,
): HTMLElement {
  const buttons = options.map(([value, text]) => {
    const choose = () => {
      for (const button of buttons) setAttribute(button, "aria-pressed", String(button.dataset["value"] === value));
      chosen(value);
    };
    return h("button", { type: "button", "data-value": value, "aria-pressed": String(value === first), onclick: choose }, text);
  });
  return h("div", { class: "choice", role: "group", "aria-label": label }, ...buttons);
}

/** A part of the page with a heading. */
export function card(id: string, title: string, tools: readonly Node[], ...children: readonly Child[]): HTMLElement {
  const heading = h("h2", { id: `${id}-title` }, title);
  return h(
    "section",
    { class: "card", id, "aria-labelledby": `${id}-title`, tabindex: "-1" },
    h("header", {}, heading, ...(tools.length > 0 ? [h("div", { class: "tools" }, ...tools)] : [])),
    ...children,
  );
}
