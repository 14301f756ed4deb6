// Makes the page interactive: tooltips, toggles, sliders, enlarging, and the reader of traces. All
// elements of figures are already in the page; text is only written with textContent.
"use strict";
(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const data = JSON.parse($("#data").textContent);

  // ---- Tips -------------------------------------------------------------------------------------
  const tip = make("div", { id: "tip", role: "status", hidden: true });
  document.body.append(tip);
  let lit = null;

  const showTip = (text, x, y) => {
    tip.textContent = text;
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    const left = Math.min(Math.max(6, x + 14), innerWidth - width - 6);
    tip.style.left = `${left}px`;
    tip.style.top = `${y + 18 + height > innerHeight ? Math.max(6, y - height - 12) : y + 18}px`;
  };
  const hideTip = () => {
    tip.hidden = true;
    lit?.classList.remove("on");
    lit = null;
  };
  const light = (mark) => {
    lit?.classList.remove("on");
    lit = mark;
    mark.classList.add("on");
    const box = mark.getBoundingClientRect();
    showTip(mark.dataset.t, box.left + box.width / 2, box.top + box.height / 2);
  };

  // A finger leaves the screen after each tap: its tooltip stays until the next tap.
  const leave = (event) => {
    if (event.pointerType !== "touch") hideTip();
  };
  document.addEventListener("pointerdown", (event) => {
    if (!event.target.closest?.(".panel svg, dialog svg, .text")) hideTip();
  });
  addEventListener(
    "scroll",
    () => {
      if (lit) hideTip();
    },
    { passive: true },
  );

  const visibleMarks = (svg) => $$(".p", svg).filter((mark) => !mark.closest(".off"));
  // The mark under the pointer, or the nearest one within 26 pixels.
  const nearest = (svg, event) => {
    if (event.target.matches?.("rect.p")) return event.target;
    let best = null;
    let distance = 26;
    for (const mark of visibleMarks(svg)) {
      const box = mark.getBoundingClientRect();
      const d = Math.hypot(
        event.clientX - Math.min(Math.max(event.clientX, box.left), box.right),
        event.clientY - Math.min(Math.max(event.clientY, box.top), box.bottom),
      );
      if (d < distance) [best, distance] = [mark, d];
    }
    return best;
  };
  const answer = (svg) => {
    const point = (event) => {
      const mark = nearest(svg, event);
      if (mark) light(mark);
      else hideTip();
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("blur", hideTip);
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === "Escape") hideTip();
      if (!step) return;
      event.preventDefault();
      const marks = visibleMarks(svg);
      const at = marks.indexOf(lit);
      if (marks.length)
        light(
          marks[
            (at < 0 ? (step > 0 ? 0 : marks.length - 1) : at + step + marks.length) % marks.length
          ],
        );
    });
  };
  $$(".panel svg").forEach(answer);

  // ---- Series on and off ------------------------------------------------------------------------
  for (const button of $$(".legend button")) {
    button.addEventListener("click", () => {
      const off = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!off));
      const figure = button.closest(".fig");
      $$(`.panel g[data-s="${button.dataset.s}"]`, figure).forEach((group) =>
        group.classList.toggle("off", off),
      );
    });
  }

  // ---- Sliders ----------------------------------------------------------------------------------
  for (const slider of $$(".slider input")) {
    const frames = data.figures[slider.dataset.frames];
    const figure = slider.closest(".fig");
    const panels = $$(".panel", figure);
    slider.closest(".slider").hidden = false;
    figure.classList.add("moves");
    slider.addEventListener("input", () => {
      const frame = frames[Number(slider.value)];
      $("output", figure).textContent = frame.label;
      slider.setAttribute("aria-valuetext", frame.label);
      frame.dots.forEach((places, panel) => {
        if (!places.length) return;
        $$(".p", panels[panel]).forEach((mark, i) => {
          mark.setAttribute("transform", `translate(${places[2 * i]} ${places[2 * i + 1]})`);
        });
        const note = $(".note", panels[panel]);
        if (note) note.textContent = frame.notes[panel] ?? "";
        $(".title", panels[panel]).textContent = frame.titles[panel];
        if (frame.lines[panel]) $(".fit", panels[panel])?.setAttribute("d", frame.lines[panel]);
      });
      hideTip();
    });
  }

  // ---- Enlarging --------------------------------------------------------------------------------
  const dialog = make("dialog", { ariaLabel: "Enlarged figure" });
  document.body.append(dialog);
  const enlarge = (panel) => {
    const svg = $("svg", panel).cloneNode(true);
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    let view = { x: 0, y: 0, w: width, h: height };
    const show = () => svg.setAttribute("viewBox", `${view.x} ${view.y} ${view.w} ${view.h}`);
    const zoom = (factor, px = 0.5, py = 0.5) => {
      const w = Math.min(width, Math.max(width / 40, view.w * factor));
      const h = (w * height) / width;
      view = { x: view.x + px * (view.w - w), y: view.y + py * (view.h - h), w, h };
      show();
    };
    const button = (text, action) =>
      make("button", { type: "button", textContent: text, onclick: action });
    const close = button("Close", () => dialog.close());
    dialog.replaceChildren(
      make(
        "div",
        { className: "row" },
        make("span", { textContent: "Wheel or buttons zoom, dragging moves." }),
        button("+", () => zoom(0.7)),
        button("−", () => zoom(1 / 0.7)),
        button("All", () => {
          view = { x: 0, y: 0, w: width, h: height };
          show();
        }),
        close,
      ),
      svg,
    );
    answer(svg);
    svg.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const box = svg.getBoundingClientRect();
        zoom(
          event.deltaY < 0 ? 0.85 : 1 / 0.85,
          (event.clientX - box.left) / box.width,
          (event.clientY - box.top) / box.height,
        );
      },
      { passive: false },
    );
    let held = null;
    svg.addEventListener("pointerdown", (event) => {
      held = { x: event.clientX, y: event.clientY, view };
    });
    svg.addEventListener("pointermove", (event) => {
      if (!held || !event.buttons) {
        held = null;
        return;
      }
      const scale = view.w / svg.getBoundingClientRect().width;
      view = {
        ...view,
        x: held.view.x - (event.clientX - held.x) * scale,
        y: held.view.y - (event.clientY - held.y) * scale,
      };
      show();
    });
    dialog.showModal();
    close.focus();
  };
  dialog.addEventListener("close", hideTip);
  for (const panel of $$(".panel")) {
    const button = make("button", {
      type: "button",
      className: "zoom",
      textContent: "⤢",
      title: "Enlarge",
    });
    button.setAttribute("aria-label", `Enlarge: ${$(".title", panel).textContent}`);
    button.addEventListener("click", () => enlarge(panel));
    panel.append(button);
  }

  // ---- The reader of traces ---------------------------------------------------------------------
  const bytesOf = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const CLASSES = ["primary", "secondary", "noise"];
  const BLOCK = 400; // tokens that are added to the page together
  const percent = (x) => `${(100 * x).toPrecision(3)} %`;

  class Reader {
    constructor(root, run) {
      Object.assign(this, {
        root,
        run,
        text: $(".text", root),
        strip: $(".strip", root),
        where: $(".where", root),
      });
      this.select = $("select.trace", root);
      this.kind = $("select.kind", root);
      this.heat = $("input.heat", root);
      run.traces.forEach((trace, t) => {
        const label = `${trace.index}: ${this.count(trace)} tokens, ${trace.sinks.length} sinks`;
        this.select.append(new Option(label, t));
      });
      const kinds = [
        ["all", "all"],
        ["c1", "secondary"],
        ["c0", "primary"],
        ["c2", "noise"],
      ];
      run.levels.forEach(([letter, start, life, n], i) =>
        kinds.push([`l${i}`, `level ${letter}: from ${start}, ${life} layers (${n})`]),
      );
      kinds.slice(0, 60).forEach(([value, label]) => this.kind.append(new Option(label, value)));
      this.select.onchange = () => this.open(Number(this.select.value));
      this.kind.onchange = () => this.choose();
      if (this.heat) this.heat.onchange = () => this.open(this.t, true);
      $(".prev", root).onclick = () => this.step(-1);
      $(".next", root).onclick = () => this.step(1);
      this.text.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (event.key === "n") this.step(1);
        if (event.key === "p") this.step(-1);
      });
      this.text.addEventListener("pointerover", (event) => this.point(event));
      this.text.addEventListener("pointerdown", (event) => this.point(event));
      this.text.addEventListener("pointerleave", leave);
      this.text.addEventListener("scroll", hideTip, { passive: true });
      this.strip.addEventListener("click", (event) => {
        const box = this.strip.getBoundingClientRect();
        this.scrollTo(Math.floor(((event.clientX - box.left) / box.width) * this.ids.length));
      });
      this.seen = new IntersectionObserver(
        (entries) => {
          for (const entry of entries) if (entry.isIntersecting) this.fill(entry.target);
        },
        { root: this.text, rootMargin: "600px 0px" },
      );
      root.hidden = false;
      if (run.traces.length < run.all) {
        root.prepend(
          make("p", {
            className: "absent",
            textContent:
              `The text of the first ${run.traces.length} of ${run.all} traces is in this page.`,
          }),
        );
      }
      const first = run.traces.findIndex((trace) => trace.sinks.some((sink) => sink[1] === 1));
      this.open(Math.max(0, first));
      new ResizeObserver(() => this.draw()).observe(this.strip);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    }

    count(trace) {
      return ((trace.ids.length * 3) / 4 - /=*$/.exec(trace.ids)[0].length) / (trace.wide ? 4 : 2);
    }

    open(t, keep = false) {
      const trace = this.run.traces[t];
      if (!trace) return;
      const scrolled = keep ? this.text.scrollTop : 0;
      Object.assign(this, { t, trace, now: keep ? this.now : -1 });
      this.select.value = t;
      const bytes = bytesOf(trace.ids);
      this.ids = trace.wide ? new Uint32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
      this.received = trace.heat && bytesOf(trace.heat);
      this.median =
        this.received && [...this.received].sort((a, b) => a - b)[this.received.length >> 1];
      this.at = new Map(trace.sinks.map((sink, i) => [sink[0], i]));
      this.seen.disconnect();
      const blocks = [];
      for (let from = 0; from < this.ids.length; from += BLOCK) {
        const block = make("div", { className: "block" });
        block.dataset.from = from;
        const characters = this.ids
          .slice(from, from + BLOCK)
          .reduce((sum, id) => sum + this.run.vocabulary[id].length, 0);
        const lines = characters / Math.max(30, this.text.clientWidth / 8.4);
        block.style.minHeight = `${lines * 1.6}em`;
        blocks.push(block);
      }
      this.text.replaceChildren(...blocks);
      if (trace.of > this.ids.length) {
        this.text.append(
          make("div", {
            className: "end",
            textContent: `The scan stopped here; the trace has ${trace.of} tokens.`,
          }),
        );
      }
      this.text.scrollTop = scrolled;
      blocks.forEach((block) => this.seen.observe(block));
      if (blocks[0] && !keep) this.fill(blocks[0]);
      this.choose();
    }

    // Adds the tokens of a block to the page, as plain text except for sinks and shaded tokens.
    fill(block) {
      if (block.firstChild) return;
      const { run, ids, trace, received } = this;
      const shaded = this.heat?.checked && received;
      const from = Number(block.dataset.from);
      const out = document.createDocumentFragment();
      let plain = "";
      let prompt = from < trace.prompt;
      const flush = () => {
        if (plain)
          out.append(prompt ? make("span", { className: "prompt", textContent: plain }) : plain);
        plain = "";
      };
      for (let p = from; p < Math.min(from + BLOCK, ids.length); p += 1) {
        if (prompt !== p < trace.prompt) {
          flush();
          prompt = p < trace.prompt;
        }
        const text = run.vocabulary[ids[p]];
        const i = this.at.get(p);
        if (i === undefined && !shaded) {
          plain += text;
          continue;
        }
        flush();
        const element = i === undefined ? make("span", { textContent: text }) : this.mark(i, text);
        element.dataset.p = p;
        if (shaded) {
          // Shading begins at the trace's median and is full two decades (of 42.5 steps) above it.
          const alpha = Math.max(0, Math.min(0.75, (received[p] - this.median) / 110));
          element.style.backgroundColor = `rgb(213 94 0 / ${alpha.toFixed(2)})`;
        }
        out.append(element);
        // A line break in a sink comes after the sink's letter.
        if (i !== undefined) out.append(/\n*$/.exec(text)[0]);
      }
      flush();
      block.style.minHeight = "";
      block.append(out);
    }

    mark(i, text) {
      const sink = this.trace.sinks[i];
      const level = sink[2] === null ? null : this.run.levels[sink[2]];
      const glyphs = { " ": "␣", "\n": "⏎", "\t": "⇥" };
      const shown = text.trim()
        ? text.replace(/\n+$/, "⏎")
        : [...text].map((c) => glyphs[c] ?? c).join("") || "∅";
      const element = make("mark", {
        className: `sink ${CLASSES[sink[1]]}`,
        textContent: shown,
        tabIndex: -1,
      });
      if (level) element.classList.add(`g${level[4]}`);
      element.dataset.l = ["P", level ? level[0] : "S", ""][sink[1]];
      element.dataset.i = i;
      element.classList.toggle("dim", !this.shown(sink));
      element.classList.toggle("now", i === this.now);
      return element;
    }

    shown(sink) {
      const kind = this.kind.value;
      if (kind === "all") return true;
      return kind[0] === "c"
        ? sink[1] === Number(kind.slice(1))
        : sink[1] === 1 && sink[2] === Number(kind.slice(1));
    }

    choose() {
      this.list = this.trace.sinks.flatMap((sink, i) => (this.shown(sink) ? [i] : []));
      $$(".sink", this.text).forEach((element) => {
        element.classList.toggle("dim", !this.shown(this.trace.sinks[element.dataset.i]));
      });
      this.say();
      this.draw();
    }

    say() {
      const at = this.list.indexOf(this.now);
      this.where.textContent = this.list.length
        ? `${at < 0 ? "" : `${at + 1} of `}${this.list.length} sinks`
        : "no such sinks in this trace";
    }

    describe(i) {
      const [, kind, index, start, last, life, hidden, written, cosine, score] =
        this.trace.sinks[i];
      const position = this.trace.sinks[i][0];
      const level = index === null ? "" : `, level ${this.run.levels[index][0]}`;
      const token = JSON.stringify(this.run.vocabulary[this.ids[position]]);
      const lines = [`${token} at ${position}: ${CLASSES[kind]} sink${level}`];
      lines.push(
        life === 1
          ? `layer ${start}`
          : `layers ${start} to ${last}${last - start + 1 > life ? ` (${life} of them)` : ""}`,
      );
      if (hidden !== null) {
        lines.push(`‖h‖ ${hidden}, ‖mlp_out‖ ${written} at layer ${start}`);
      }
      if (cosine !== null) lines.push(`cosine with the reference at least ${cosine}`);
      if (score !== null) lines.push(`receives ${percent(score)} of later tokens' attention`);
      return lines.join("\n");
    }

    point(event) {
      const element = event.target.closest?.("[data-p]");
      if (!element) {
        hideTip();
        return;
      }
      const p = Number(element.dataset.p);
      const i = this.at.get(p);
      const percentage = () => percent(10 ** (this.received[p] / 42.5 - 6));
      const received = this.received ? `\nreceives ${percentage()}, mean over all layers` : "";
      const token = () => JSON.stringify(this.run.vocabulary[this.ids[p]]);
      const text = i === undefined ? `${token()} at ${p}${received}` : this.describe(i);
      showTip(text, event.clientX, event.clientY);
    }

    scrollTo(position) {
      const block = this.text.children[Math.floor(position / BLOCK)];
      if (!block) return null;
      this.fill(block);
      const element = $(`[data-p="${position}"]`, block) ?? block;
      const middle = element.getBoundingClientRect().top - this.text.getBoundingClientRect().top;
      this.text.scrollTop += middle - this.text.clientHeight / 2;
      return element;
    }

    go(i) {
      const sink = this.trace.sinks[i];
      if (!sink) return;
      this.now = i;
      $$(".now", this.text).forEach((element) => element.classList.remove("now"));
      // Blocks above are filled when they come near and may shift the position: scroll once more.
      const arrive = () => {
        const element = this.scrollTo(sink[0]);
        element?.classList.add("now");
        return element;
      };
      arrive();
      requestAnimationFrame(() =>
        requestAnimationFrame(() => {
          const element = arrive();
          element?.focus({ preventScroll: true });
          // After the scrolling, which hides tooltips.
          setTimeout(() => {
            const box = element?.getBoundingClientRect();
            if (box) showTip(this.describe(i), box.left, box.bottom - 6);
          }, 150);
        }),
      );
      this.say();
      this.draw();
    }

    step(by) {
      if (!this.list.length) return;
      let at = this.list.indexOf(this.now);
      if (at < 0) at = by > 0 ? -1 : this.list.length;
      this.go(this.list[(at + by + this.list.length) % this.list.length]);
    }

    // One stroke per sink, at its position in the trace.
    draw() {
      const { strip, trace, ids } = this;
      const scale = devicePixelRatio || 1;
      strip.width = Math.max(1, strip.clientWidth * scale);
      strip.height = 28 * scale;
      const context = strip.getContext("2d");
      const style = getComputedStyle(document.documentElement);
      const color = (name) => style.getPropertyValue(name).trim();
      context.fillStyle = color("--line");
      context.fillRect(0, 13 * scale, strip.width, 2 * scale);
      trace.sinks.forEach((sink, i) => {
        if (!this.shown(sink)) return;
        const level = sink[2] === null ? null : this.run.levels[sink[2]];
        context.fillStyle = color(
          ["--primary", level ? `--g${level[4]}` : "--g5", "--soft"][sink[1]],
        );
        const tall = [28, 18, 8][sink[1]];
        const x = (sink[0] / Math.max(1, ids.length - 1)) * (strip.width - 2 * scale);
        context.fillRect(
          x,
          ((28 - tall) / 2) * scale,
          (i === this.now ? 4 : 1.5) * scale,
          tall * scale,
        );
      });
    }
  }

  const readers = new Map();
  for (const root of $$(".reader")) {
    const run = data.runs.find((run) => run.anchor === root.dataset.run);
    if (!run?.traces.length) continue;
    // Built when it comes near the viewport, so that it does not delay the first paint.
    const build = () => {
      if (!readers.has(run.anchor)) readers.set(run.anchor, new Reader(root, run));
      return readers.get(run.anchor);
    };
    root.hidden = false;
    new IntersectionObserver(
      (entries, observer) => {
        if (!entries.some((entry) => entry.isIntersecting)) return;
        observer.disconnect();
        build();
      },
      { rootMargin: "800px 0px" },
    ).observe(root);
    root.build = build;
  }

  // #r0-t3-p120 is position 120 of the fourth trace of the first run.
  const follow = () => {
    const [, anchor, t, p] = location.hash.match(/^#(r\d+)-t(\d+)-p(\d+)$/) ?? [];
    const root = anchor && $(`.reader[data-run="${anchor}"]`);
    if (!root?.build) return;
    const reader = root.build();
    root.scrollIntoView({ block: "start" });
    const trace = reader.run.traces[Number(t)];
    if (!trace) {
      reader.where.textContent = "the text of that trace is not in this page";
      return;
    }
    reader.kind.value = "all";
    reader.open(Number(t));
    reader.go(trace.sinks.findIndex((sink) => sink[0] === Number(p)));
  };
  addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => {
    // A second click on the same link does not change the hash.
    if (location.hash && event.target.closest?.("a")?.getAttribute("href") === location.hash)
      follow();
  });
  follow();
  document.documentElement.dataset.ready = "yes";
})();
