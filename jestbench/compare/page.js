// Draws the charts of a comparison, and what is switched, copied and jumped to. The data stand in #data; every text from
// them enters the page as text, or is escaped where plotly.js reads markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const cut = (text, most = 60) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  const dashes = ["solid", "dash", "dashdot", "dot"];
  const symbols = ["circle", "square", "diamond", "circle-open", "triangle-up", "square-open"];
  const config = {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d", "pan2d"],
    toImageButtonOptions: { format: "svg", filename: "jestbench" },
  };
  const drawings = []; // functions that draw every chart anew: for another colour scheme, and for print

  const armColour = (world, arm) => colour(`--c${world.looks[arm].colour}`);
  const dash = (world, arm) => dashes[world.looks[arm].cycle % dashes.length];
  const symbol = (world, arm) => symbols[world.looks[arm].cycle % symbols.length];
  const faded = (hex, alpha) => {
    const parts = hex.match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
    return `rgba(${parts.join(",")},${alpha})`;
  };
  const number = (value) =>
    value === null ? "–" : Math.abs(value) >= 1e-3 || value === 0 ? Number(value.toPrecision(4)).toString() : value.toExponential(2);

  const layout = (more) => {
    const grid = { gridcolor: colour("--line"), zeroline: false, linecolor: colour("--soft"), automargin: true, title: { standoff: 12 } };
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: 13 },
      margin: { l: 60, r: 16, t: 26, b: 50 },
      showlegend: false,
      hoverlabel: { bgcolor: colour("--paper"), bordercolor: colour("--soft"), font: { color: colour("--ink") }, align: "left" },
      hovermode: "closest",
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      ...more,
      xaxis: { ...grid, ...more.xaxis },
      yaxis: { ...grid, ...more.yaxis },
    };
  };

  const xAxis = (world, state, amounts) => {
    const axis = world.axes[state.axis];
    const title = { text: axis.unit === "FLOP" ? `${axis.name} (G = 10⁹, T = 10¹²)` : axis.name, standoff: 12 };
    if (!state.log || !amounts.length) return { title, type: "linear", tickformat: "~s", rangemode: "tozero" };
    const smallest = Math.min(...amounts);
    const largest = Math.max(...amounts);
    const range = [Math.log10(smallest) - 0.12, Math.log10(largest) + 0.1];
    return { title, type: "log", tickformat: "~s", dtick: "D2", range };
  };

  // The frontier

  function frontier(section, world, number_, state) {
    const chart = section.querySelector(".chart");
    const detail = section.querySelector(".detail");
    const pick = section.querySelector(".metric");
    const hidden = new Set();
    let walk = [];
    let at = -1;

    const runText = (run, value, amount) => {
      const found = world.runs[run];
      return [
        `<b>${escaped(cut(world.arms[found.arm]))}</b>, seed ${found.seed}`,
        escaped(cut(found.name)),
        `${number(value)} at ${amountText(amount)}`,
        `<i>${escaped(cut(found.again, 80))}</i>`,
      ].join("<br>");
    };
    const amountText = (amount) => {
      const unit = world.axes[state.axis].unit;
      const [size, sign] = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([s]) => amount >= s) ?? [1, ""];
      return `${Number((amount / size).toPrecision(3))} ${sign}${unit}`.trim();
    };

    function traces(metric) {
      const found = [];
      world.arms.forEach((label, arm) => {
        const line = armColour(world, arm);
        const visible = !hidden.has(arm);
        const curves = { x: [], y: [], customdata: [], text: [] };
        for (const curve of state.curves ? metric.curves : []) {
          if (world.runs[curve.run].arm !== arm) continue;
          (curve.x ?? world.amounts[curve.run])[state.axis].forEach((amount, place) => {
            curves.x.push(amount);
            curves.y.push(curve.y[place]);
            curves.customdata.push({ run: curve.run, value: curve.y[place], amount });
          });
          curves.x.push(null);
          curves.y.push(null);
          curves.customdata.push(null);
        }
        curves.text = curves.customdata.map((one) => (one ? runText(one.run, one.value, one.amount) : ""));
        const several = metric.points.some((point, place) => point.arm === arm && metric.points[place + 1]?.arm === arm);
        found.push({
          ...curves, visible, mode: "lines",
          line: { color: faded(line, several ? 0.3 : 0.55), width: 1.1, dash: dash(world, arm) },
          hovertemplate: "%{text}<extra></extra>", name: escaped(label), meta: "curves",
        });
        const ends = metric.ends.filter(([run]) => world.runs[run].arm === arm);
        const customdata = ends.map(([run, value, ...amounts]) => ({ run, value, amount: amounts[state.axis] }));
        found.push({
          visible, mode: "markers", x: customdata.map((one) => one.amount), y: customdata.map((one) => one.value), customdata,
          text: customdata.map((one) => runText(one.run, one.value, one.amount)), hovertemplate: "%{text}<extra></extra>",
          marker: { color: faded(line, 0.45), size: 5, symbol: symbol(world, arm) }, name: escaped(label), meta: "seeds",
        });
        const points = metric.points.filter((point) => point.arm === arm);
        const spread = (end, sign) => points.map((point) => (point[end] === null ? 0 : sign * (point[end] - point.value)));
        found.push({
          visible, mode: "lines+markers", x: points.map((point) => point.x[state.axis]), y: points.map((point) => point.value),
          customdata: points.map((point) => ({ arm, value: point.value, point })),
          text: points.map((point) => [
            `<b>${escaped(cut(label))}</b>, mean of ${point.seeds} seed${point.seeds > 1 ? "s" : ""}`,
            `${number(point.value)}${point.low === null ? "" : ` [${number(point.low)}, ${number(point.high)}]`} at ${point.budget}`,
          ].join("<br>")),
          hovertemplate: "%{text}<extra></extra>",
          line: { color: line, width: 2.2, dash: dash(world, arm) },
          marker: { color: line, size: 9, symbol: symbol(world, arm), line: { color: colour("--paper"), width: 1.5 } },
          error_y: { type: "data", symmetric: false, array: spread("high", 1), arrayminus: spread("low", -1), color: line, thickness: 1.6, width: 5 },
          name: escaped(label), meta: "decayed",
        });
      });
      return found;
    }

    // The range of what is measured; a reference far above it is named at the edge instead of pressing the arms flat.
    function extent(metric) {
      const shown = [
        ...metric.points.flatMap((point) => [point.value, point.low, point.high]),
        ...metric.ends.map((end) => end[1]),
        ...(state.curves && !state.log ? metric.curves.flatMap((curve) => curve.y) : []),
        metric.chance,
      ].filter((value) => value !== null);
      const [low, high] = [Math.min(...shown), Math.max(...shown)];
      const space = 0.06 * (high - low || 1);
      return [low - space, high + space];
    }

    function marks(metric, [low, high]) {
      const shapes = [];
      const annotations = [];
      const level = (value, text, side) => {
        shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, line: { color: colour("--soft"), width: 1, dash: "dot" }, layer: "below" });
        annotations.push({ xref: "paper", x: side, xanchor: side ? "right" : "left", y: value, yanchor: "bottom", text, showarrow: false, font: { size: 11, color: colour("--soft") } });
      };
      if (metric.chance !== null) level(metric.chance, `chance ${number(metric.chance)}`, 1);
      if (metric.key === world.metric) {
        const seen = new Map(world.references.map((row) => [row.name, row.value]));
        for (const [name, value] of seen) {
          const text = escaped(cut(`${name} itself: ${number(value)}`));
          if (value >= low && value <= high) level(value, text, 0);
          else annotations.push({ xref: "paper", yref: "paper", x: 0.005, xanchor: "left", y: value > high ? 0.99 : 0.01, yanchor: value > high ? "top" : "bottom", text: `${value > high ? "↑" : "↓"} ${text}`, showarrow: false, font: { size: 11, color: colour("--soft") } });
        }
      }
      if (world.axes[state.axis].key === "flops") {
        const place = state.log ? Math.log10(world.budget) : world.budget;
        shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: world.budget, x1: world.budget, line: { color: colour("--soft"), width: 1, dash: "dot" }, layer: "below" });
        annotations.push({ yref: "paper", y: 1, yanchor: "bottom", x: place, xanchor: "right", text: `common budget ${world.budgetText}`, showarrow: false, font: { size: 11, color: colour("--soft") } });
      }
      return { shapes, annotations };
    }

    function draw() {
      const metric = world.metrics[state.metric];
      const shown = traces(metric);
      const amounts = metric.points.map((point) => point.x[state.axis]).filter((amount) => amount > 0);
      const range = extent(metric);
      const y = { range, title: { text: escaped(metric.name) + (metric.lower ? " (lower is better)" : ""), standoff: 12 } };
      Plotly.react(chart, shown, layout({ xaxis: xAxis(world, state, amounts), yaxis: y, ...marks(metric, range) }), config);
      chart.dataset.drawn = `${metric.key} ${world.axes[state.axis].key}`;
      walk = shown.flatMap((trace, curve) =>
        trace.visible && trace.meta !== "curves" ? trace.x.map((_, place) => [curve, place, trace.customdata[place]]) : []);
      at = -1;
    }

    function describe(one) {
      const metric = world.metrics[state.metric];
      detail.replaceChildren();
      const jump = document.createElement("a");
      if (one.run !== undefined) {
        const run = world.runs[one.run];
        jump.href = `#run-${number_}-${one.run}`;
        jump.textContent = run.name;
        const code = document.createElement("code");
        code.textContent = run.again;
        detail.append(`${world.arms[run.arm]}, seed ${run.seed}: ${number(one.value)} at ${amountText(one.amount)} · run `, jump, " · ", code);
      } else {
        jump.href = `#arm-${number_}-${one.arm}`;
        jump.textContent = "its runs";
        const { point } = one;
        const ends = point.low === null ? "" : ` [${number(point.low)}, ${number(point.high)}]`;
        detail.append(`${world.arms[one.arm]}: ${metric.name} ${number(point.value)}${ends} at ${point.budget} (${point.seeds} seed${point.seeds > 1 ? "s" : ""}) · `, jump);
      }
      return jump.href;
    }
    const follow = (one) => {
      location.hash = describe(one).split("#")[1];
    };

    draw();
    drawings.push(draw);
    chart.on("plotly_hover", (event) => event.points[0].customdata && describe(event.points[0].customdata));
    chart.on("plotly_click", (event) => event.points[0].customdata && follow(event.points[0].customdata));
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step && walk.length) {
        event.preventDefault();
        at = (at + step + walk.length) % walk.length;
        Plotly.Fx.hover(chart, [{ curveNumber: walk[at][0], pointNumber: walk[at][1] }]);
        describe(walk[at][2]);
      } else if (event.key === "Enter" && at >= 0) follow(walk[at][2]);
    });
    pick.addEventListener("change", () => {
      state.metric = Number(pick.value);
      draw();
    });
    const curves = section.querySelector(".curves");
    curves.addEventListener("change", () => {
      state.curves = curves.checked;
      draw();
    });
    const legend = section.querySelector(".legend");
    world.arms.forEach((label, arm) => {
      const button = document.createElement("button");
      const key = document.createElement("span");
      key.className = `key k${world.looks[arm].cycle % symbols.length}`;
      key.style.setProperty("--c", `var(--c${world.looks[arm].colour})`);
      button.append(key, label);
      button.setAttribute("aria-pressed", "true");
      button.addEventListener("click", () => {
        hidden.has(arm) ? hidden.delete(arm) : hidden.add(arm);
        button.setAttribute("aria-pressed", String(!hidden.has(arm)));
        draw();
      });
      legend.append(button);
    });
    const log = section.querySelector(".log");
    log.checked = state.log;
    const switched = () => {
      state.log = log.checked;
      draw();
      state.others.forEach((other) => other());
    };
    log.addEventListener("change", switched);
    section.querySelector(".axis").addEventListener("change", (event) => {
      state.axis = Number(event.target.value);
      switched();
    });
  }

  // Cost by purpose

  function cost(section, world) {
    const chart = section.querySelector(".chart");
    chart.style.height = `${70 + 34 * world.arms.length}px`;
    const draw = () => {
      const narrow = innerWidth < 700;
      const labels = world.arms.map((label, arm) => `${escaped(cut(label, narrow ? 18 : 40))}<span style="display:none">${arm}</span>`);
      const traces = world.cost.map((part) => {
        const place = data.purposes[part.purpose];
        return {
          type: "bar", orientation: "h", name: escaped(part.name), x: part.flops, y: world.arms.map((_, arm) => arm),
          text: part.flops.map((flops, arm) => `${escaped(cut(world.arms[arm]))}<br>${escaped(part.name)}: ${flops.toPrecision(4)} FLOP`),
          textposition: "none", hovertemplate: "%{text}<extra></extra>",
          marker: part.apart
            ? { color: colour("--paper"), line: { color: colour("--soft"), width: 1 }, pattern: { shape: "/", fgcolor: colour("--soft"), size: 6, solidity: 0.25 } }
            : { color: colour(`--p${place ?? 7}`) },
        };
      });
      const more = {
        barmode: "stack", bargap: 0.35, margin: { l: 60, r: 16, t: 8, b: 44 },
        xaxis: { tickformat: "~s", title: { text: "FLOPs", standoff: 6 } },
        yaxis: { tickvals: world.arms.map((_, arm) => arm), ticktext: labels, autorange: "reversed", showgrid: false, automargin: true },
      };
      Plotly.react(chart, traces, layout(more), config);
    };
    draw();
    drawings.push(draw);
  }

  // Selection over time

  function selection(section, world, state) {
    const chart = section.querySelector(".chart");
    const what = section.querySelector(".what");
    const note = section.querySelector(".note");
    const draw = () => {
      const key = world.selection.keys[Number(what.value)];
      const traces = [];
      world.selection.arms.forEach((found, arm) => {
        const line = armColour(world, arm);
        const x = found.x[state.axis];
        const whole = key.whole && found.y[key.whole];
        if (whole) traces.push({ x, y: whole[0], mode: "lines", line: { color: faded(line, 0.45), width: 1.2, dash: "dot" }, hoverinfo: "skip" });
        const own = found.y[key.key];
        if (!own) return;
        if (own[1].some((low, place) => low !== own[2][place])) {
          traces.push({ x, y: own[1], mode: "lines", line: { width: 0 }, hoverinfo: "skip" });
          traces.push({ x, y: own[2], mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: faded(line, 0.14), hoverinfo: "skip" });
        }
        traces.push({
          x, y: own[0], mode: "lines", line: { color: line, width: 2, dash: dash(world, arm) }, name: escaped(cut(world.arms[arm])),
          hovertemplate: `<b>${escaped(cut(world.arms[arm]))}</b><br>%{y:.4~g} at %{x:.3~s}<extra></extra>`,
        });
      });
      Plotly.react(chart, traces, layout({ xaxis: xAxis(world, { ...state, log: false }, []), yaxis: { title: { text: escaped(key.name), standoff: 12 } } }), config);
      chart.dataset.drawn = `${key.key} ${world.axes[state.axis].key}`;
      const rows = world.selection.arms.map((found) => Math.round(found.rows ?? 1));
      const [fewest, most] = [Math.min(...rows), Math.max(...rows)];
      note.textContent =
        `Lines: mean over seeds; bands: lowest to highest seed. A point is the mean of about ${fewest}` +
        `${most > fewest ? ` to ${most}` : ""} logged row${most > 1 ? "s" : ""}.` + (key.whole ? " Dotted: the same of the whole super-batch, before anything is chosen." : "");
    };
    draw();
    drawings.push(draw);
    state.others.push(draw);
    what.addEventListener("change", draw);
  }

  // Gallery: pictures are set when their super-batch is shown

  function gallery(section, world) {
    const batches = [...section.querySelectorAll(".batch")];
    const which = section.querySelector(".which");
    const show = () =>
      batches.forEach((batch, place) => {
        batch.hidden = place !== Number(which.value);
        if (batch.hidden) return;
        for (const image of batch.querySelectorAll("img[data-at]")) {
          const source = world.pictures[place][image.dataset.at];
          if (source && image.src !== source) image.src = source;
        }
      });
    which.addEventListener("change", show);
    show();
  }

  // Two configurations side by side

  function differs(section, world) {
    const [left, right, all] = ["left", "right", "all"].map((name) => section.querySelector(`.${name}`));
    if (!left) return;
    const [head, body] = [section.querySelector(".diff thead tr"), section.querySelector(".diff tbody")];
    if (world.arms.length > 1) right.value = "1";
    const cell = (row, text, code) => {
      const found = row.insertCell();
      if (!found.cellIndex) found.setAttribute("role", "rowheader");
      const inner = code && text ? found.appendChild(document.createElement("code")) : found;
      inner.textContent = text;
    };
    const show = () => {
      const [one, other] = [left, right].map((side) => world.configurations[Number(side.value)]);
      head.cells[1].textContent = world.arms[Number(left.value)];
      head.cells[2].textContent = world.arms[Number(right.value)];
      body.replaceChildren();
      body.parentElement.classList.toggle("all", all.checked);
      for (const key of [...new Set([...Object.keys(one), ...Object.keys(other)])].sort()) {
        const same = one[key] === other[key];
        if (same && !all.checked) continue;
        const row = body.insertRow();
        row.className = same ? "same" : "other";
        [key, one[key] ?? "", other[key] ?? ""].forEach((text) => cell(row, text, true));
      }
      if (!body.rows.length) cell(body.insertRow(), "no difference", false);
    };
    [left, right, all].forEach((side) => side.addEventListener("change", show));
    show();
  }

  // Copying, jumping, colours

  async function copy(button) {
    const text = "markdown" in button.dataset ? data.markdown : button.dataset.copy;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.body.appendChild(document.createElement("textarea"));
      area.value = text;
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    const before = button.textContent;
    button.textContent = "copied";
    setTimeout(() => (button.textContent = before), 1500);
  }

  function opened() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    for (let place = target; place; place = place.parentElement) if (place.tagName === "DETAILS") place.open = true;
    target.scrollIntoView({ block: "center" });
    target.focus({ preventScroll: true });
  }

  const redraw = () => drawings.forEach((draw) => draw());
  const states = data.worlds.map((world) => {
    const amounts = world.metrics[0].points.map((point) => point.x[0]).filter((amount) => amount > 0);
    return { metric: 0, axis: 0, curves: true, log: Math.max(...amounts) >= 3.9 * Math.min(...amounts), others: [] };
  });
  const each = (name, draw) =>
    document.querySelectorAll(`section.${name}`).forEach((section) => {
      const place = Number(section.dataset.world);
      draw(section, data.worlds[place], states[place], place);
    });
  each("frontier", (section, world, state, place) => frontier(section, world, place, state));
  each("cost", (section, world) => cost(section, world));
  each("selection", (section, world, state) => selection(section, world, state));
  each("gallery", (section, world) => gallery(section, world));
  each("differs", (section, world) => differs(section, world));
  document.querySelectorAll("button.copy").forEach((button) => button.addEventListener("click", () => copy(button)));
  addEventListener("hashchange", opened);
  opened();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    root.dataset.print = "";
    redraw();
  });
  addEventListener("afterprint", () => {
    delete root.dataset.print;
    redraw();
  });
})();
