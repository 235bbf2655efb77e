// Makes the tables sortable and draws the heat maps. Names of adapters and sites enter the page as text only.
"use strict";
(() => {
  const FIRST_ROWS = 24;
  const MISSING = "–";
  const make = (name, settings = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(settings)) {
      if (key === "class") made.className = value;
      else if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  };

  // a long name may break after a dot
  const breakable = (name) => name.split(/(?<=\.)/).flatMap((part, index) => (index ? [make("wbr"), part] : [part]));

  // --- numbers --------------------------------------------------------------------------------------------------------

  const signed = (text) => (/[1-9]/.test(text) ? text.replace("-", "−") : text.replace("-", ""));
  // a call cannot take as many arguments as a large model has figures
  const largest = (values, least) => values.reduce((most, value) => Math.max(most, value), least);
  const decimals = (values) => {
    const most = largest(values.map(Math.abs), 0);
    return values.every(Number.isInteger) ? 0 : Math.min(6, Math.max(2, 2 - Math.floor(Math.log10(most))));
  };
  const write = (value, places) => (value === null ? MISSING : signed(value.toFixed(places)));
  const percent = (value, places = 1) => (value === null ? MISSING : `${signed((100 * value).toFixed(places))} %`);
  const known = (values) => values.filter((value) => value !== null);
  const extent = (values) => values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  // --- sorting --------------------------------------------------------------------------------------------------------

  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  };
  const ordered = (rows, of, falling) => {
    const keyed = rows.map((row, index) => [of(row), index, row]);
    // what is missing stays last in both directions
    keyed.sort(([a, i], [b, j]) => (falling && a !== null && b !== null ? compare(b, a) : compare(a, b)) || i - j);
    return keyed.map(([, , row]) => row);
  };
  const markSorted = (head, chosen, falling) => {
    for (const each of head.children) each.removeAttribute("aria-sort");
    chosen.setAttribute("aria-sort", falling ? "descending" : "ascending");
  };
  const sorter = (heading, click) => {
    const button = make("button", { type: "button", title: "sort" }, ...heading.childNodes);
    button.addEventListener("click", click);
    heading.append(button);
  };
  const makeSortable = (table) => {
    const head = table.tHead.rows[0];
    const body = table.tBodies[0];
    [...head.cells].forEach((heading, index) =>
      sorter(heading, () => {
        const numeric = heading.classList.contains("n");
        const falling = heading.hasAttribute("aria-sort") ? heading.getAttribute("aria-sort") === "ascending" : numeric;
        const value = (row) => {
          const cell = row.cells[index];
          if (!numeric) return cell.textContent;
          return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
        };
        body.append(...ordered([...body.rows], value, falling));
        markSorted(head, heading, falling);
      }),
    );
  };

  // --- colour scales --------------------------------------------------------------------------------------------------

  // A scale maps a value to a ramp (cold or warm) and a depth from 0 to 1, and knows how to write values.
  const scaleOf = (figure) => {
    const values = known(figure.values.flat());
    const [low, high] = extent(values);
    const most = Math.max(Math.abs(low), Math.abs(high));
    const places = decimals(values);
    // what is all close to nothing must not look like a conflict
    const full = Math.max(most, 0.1);
    const plain = (value) => write(value, places);
    const short = (value) => signed(String(Number(value.toPrecision(3))));
    switch (figure.scale) {
      case "signed":
        return { ends: [-full, full], show: plain, end: short, shade: (v) => [v < 0 ? "warm" : "cold", Math.abs(v) / full] };
      case "chance": {
        const far = Math.max(0.1, high - 0.5, 0.5 - low);
        return { ends: [0.5 - far, 0.5 + far], show: percent, shade: (v) => [v > 0.5 ? "warm" : "cold", Math.abs(v - 0.5) / far] };
      }
      case "good": {
        const from = low >= high ? 0 : low;
        return { ends: [from, high], show: percent, shade: (v) => ["cold", high > from ? (v - from) / (high - from) : 1] };
      }
      case "bad":
        return { ends: [0, full], show: percent, shade: (v) => ["warm", v / full] };
      case "angle":
        return { ends: [0, 90], show: (v) => (v === null ? MISSING : `${write(v, 1)}°`), shade: (v) => ["warm", 1 - v / 90] };
      case "ratio": {
        // ratios are compared in octaves; one that is 0 has no logarithm and is shown as the least
        const octaves = largest(values.filter((v) => v > 0).map((v) => Math.abs(Math.log2(v))), 0.1);
        const depth = (v) => (v > 0 ? Math.log2(v) / octaves : -1);
        const ends = [2 ** -octaves, 2 ** octaves];
        const show = (v) => write(v, Math.max(2, places));
        return { ends, show, end: short, shade: (v) => [depth(v) < 0 ? "warm" : "cold", Math.min(1, Math.abs(depth(v)))] };
      }
      default:
        return { ends: [0, most], show: plain, end: short, shade: (v) => ["cold", most ? v / most : 0] };
    }
  };
  const shaded = (scale, value) => {
    const cell = make("i");
    if (value === null) {
      cell.className = "empty";
      return cell;
    }
    const [ramp, depth] = scale.shade(value);
    cell.className = ramp;
    cell.style.setProperty("--v", depth.toFixed(3));
    return cell;
  };
  const legend = (scale) => {
    const [low, high] = scale.ends;
    const say = scale.end || scale.show;
    const geometric = low > 0 && Math.abs(low * high - 1) < 1e-9;
    const at = (share) => (geometric ? low * (high / low) ** share : low + (high - low) * share);
    const ramp = make("span", {}, ...Array.from({ length: 15 }, (_, step) => shaded(scale, at(step / 14))));
    return make("div", { class: "scale" }, say(low), ramp, say(high));
  };

  // --- tooltip --------------------------------------------------------------------------------------------------------

  const tip = make("div", { class: "tip", hidden: true, role: "status" });
  document.body.append(tip);
  const showTip = (event, lines) => {
    tip.replaceChildren(make("b", {}, lines[0]), ...lines.slice(1).map((line) => make("div", {}, line)));
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, innerWidth - box.width - 8);
    const above = event.clientY + 18 + box.height > innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above ? event.clientY - box.height - 12 : event.clientY + 18}px`;
  };
  const hideTip = () => {
    tip.hidden = true;
  };
  addEventListener("scroll", hideTip, { passive: true });

  // --- heat maps and the table of sites -------------------------------------------------------------------------------

  const explore = (place, data) => {
    const state = { group: 0, figure: 0, choice: [], sort: null };
    const controls = make("div", { class: "controls" });
    const about = make("div", { class: "about" });
    const maps = make("div");
    const table = make("table", { class: "sites" });
    const more = make("button", { class: "more", type: "button", hidden: true });
    const group = () => data.groups[state.group];
    const figure = () => group().figures[state.figure];

    const picker = (name, labels, chosen, choose) => {
      const options = labels.map((label, index) => make("option", { value: index, selected: index === chosen }, label));
      const select = make("select", {}, ...options);
      select.addEventListener("change", () => choose(Number(select.value)));
      return make("label", {}, name, select);
    };
    // choice 0 of an axis stands for the worst of all, where there is more than one
    const labelsOf = (axis) => (axis.labels.length > 1 ? [`worst of all ${axis.labels.length}`, ...axis.labels] : axis.labels);
    const setGroup = (index) => {
      Object.assign(state, { group: index, figure: 0, sort: null, choice: data.groups[index].axes.map(() => 0) });
      // the recipe's own method is what one looks at first
      data.groups[index].axes.forEach((axis, at) => {
        if (axis.name === "method" && axis.labels.length > 1) state.choice[at] = 1;
      });
      draw();
    };

    // positions of the chosen columns: all of an axis where the worst is asked for
    const chosenColumns = () =>
      group().axes.reduce(
        (columns, axis, at) => {
          const all = axis.labels.map((_, index) => index);
          const wanted = axis.labels.length > 1 && state.choice[at] ? [state.choice[at] - 1] : all;
          return columns.flatMap((column) => wanted.map((index) => column * axis.labels.length + index));
        },
        [0],
      );
    const columnName = (column) => {
      const names = [];
      for (const axis of [...group().axes].reverse()) {
        names.unshift(axis.labels[column % axis.labels.length]);
        column = Math.floor(column / axis.labels.length);
      }
      return names.join(", ");
    };
    const badness = (of, value) => {
      if (of.scale === "ratio") return of.key === "norm_ratio" ? Math.abs(Math.log(value || 1e-9)) : -value;
      return of.worst === "least" ? -value : value;
    };
    // value and column of a figure at every site
    const resolve = (of, columns) =>
      data.sites.map((_, site) => {
        let best = [null, null];
        for (const column of columns) {
          const value = of.values[column][site];
          if (value !== null && (best[0] === null || badness(of, value) > badness(of, best[0]))) best = [value, column];
        }
        return best;
      });

    const drawMap = (panel, scale, resolved, several, title) => {
      // all panels have the same room for names, so that their first layers stand below each other
      const names = 2 + largest(data.panels.flatMap((each) => each.modules.map((module) => module.length)), 0);
      const grid = make("div", { class: "heat", role: "img" });
      grid.setAttribute("aria-label", `${title}, ${panel.name || "outside the layers"}`);
      grid.style.gridTemplateColumns = `min(36%, ${names}ch) repeat(${panel.layers.length}, minmax(0, 40px))`;
      if (panel.layers.length > 56) grid.style.columnGap = "0";
      const cells = new Map(panel.cells.map(([row, column, ...members]) => [`${row} ${column}`, members]));
      panel.modules.forEach((module, row) => {
        grid.append(make("span", { class: "module", title: module }, module));
        panel.layers.forEach((layer, column) => {
          const members = cells.get(`${row} ${column}`);
          if (!members) {
            grid.append(make("span"));
            return;
          }
          const values = known(members.map((site) => resolved[site][0]));
          const value = values.length ? mean(values) : null;
          const cell = shaded(scale, value);
          const lines = [members.length === 1 ? data.sites[members[0]] : `${module}, layer ${layer}: mean of ${members.length} sites`];
          lines.push(`${figure().title} ${scale.show(value)}`);
          const worst = members.length === 1 ? resolved[members[0]][1] : null;
          if (worst !== null && group().axes.length) lines.push(columnName(worst));
          cell.addEventListener("pointermove", (event) => showTip(event, lines));
          cell.addEventListener("pointerdown", (event) => showTip(event, lines));
          cell.addEventListener("pointerleave", hideTip);
          grid.append(cell);
        });
      });
      if (panel.name) {
        // as many numbers as have room on a screen 900 points wide, fewer of them on a phone
        const need = 8 + 7 * largest(panel.layers.map((layer) => layer.length), 0);
        const step = (width) => Math.ceil(need / Math.min(40, width / panel.layers.length));
        const wide = step(900);
        const narrow = wide * Math.ceil(step(220) / wide);
        grid.append(make("span", { class: "layer axis" }, "layer"));
        panel.layers.forEach((layer, column) => {
          const kind = column % narrow ? "layer fine" : "layer";
          grid.append(make("span", { class: kind }, column % wide ? "" : layer));
        });
      }
      return make("div", { class: "panel" }, ...(several ? [make("p", {}, panel.name || "outside the layers")] : []), grid);
    };

    // until a column is chosen, the sites to worry about come first; equal ones in the order of the layers
    const worstFirst = (sites, values) => {
      const named = ordered(sites, (site) => data.sites[site], false);
      return ordered(named, (site) => (values[site][0] === null ? null : badness(figure(), values[site][0])), true);
    };

    const drawTable = (columns, limit) => {
      const figures = group().figures;
      const scales = figures.map(scaleOf);
      const resolved = figures.map((each) => resolve(each, columns));
      const heads = ["site", "out × in", ...figures.map((each) => each.title)];
      const head = make("tr", {}, ...heads.map((name, index) => make("th", { scope: "col", class: index ? "n" : "" }, name)));
      const value = (index) => (site) => {
        if (index === 0) return data.sites[site];
        if (index === 1) return data.shapes[site];
        return resolved[index - 2][site][0];
      };
      const all = data.sites.map((_, site) => site);
      const sites = state.sort ? ordered(all, value(state.sort.index), state.sort.falling) : worstFirst(all, resolved[state.figure]);
      const shown = sites.slice(0, limit);
      const row = (site) =>
        make(
          "tr",
          {},
          make("th", { scope: "row" }, ...breakable(data.sites[site])),
          make("td", { class: "n" }, data.shapes[site]),
          ...figures.map((_, at) => make("td", { class: "n" }, scales[at].show(resolved[at][site][0]))),
        );
      table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...shown.map(row)));
      [...head.cells].forEach((heading, index) => {
        sorter(heading, () => {
          const same = state.sort && state.sort.index === index;
          state.sort = { index, falling: same ? !state.sort.falling : index > 1 };
          drawTable(columns, limit);
        });
        if (index > 1) heading.title = figures[index - 2].meaning;
      });
      if (state.sort) markSorted(head, head.cells[state.sort.index], state.sort.falling);
      more.hidden = sites.length <= limit;
      more.textContent = `show all ${sites.length} sites`;
      more.onclick = () => drawTable(columns, sites.length);
    };

    const draw = () => {
      hideTip();
      const { axes, figures } = group();
      controls.replaceChildren(
        picker("look at", data.groups.map((each) => each.title), state.group, setGroup),
        ...axes.map((axis, at) =>
          picker(axis.name, labelsOf(axis), state.choice[at], (chosen) => {
            state.choice[at] = chosen;
            draw();
          }),
        ),
        picker("figure", figures.map((each) => each.title), state.figure, (chosen) => {
          Object.assign(state, { figure: chosen, sort: null });
          draw();
        }),
      );
      const scale = scaleOf(figure());
      const columns = chosenColumns();
      about.replaceChildren(make("p", {}, `${figure().title}: ${figure().meaning}`), legend(scale));
      const resolved = resolve(figure(), columns);
      maps.replaceChildren(...data.panels.map((panel) => drawMap(panel, scale, resolved, data.panels.length > 1, figure().title)));
      drawTable(columns, FIRST_ROWS);
    };

    place.append(controls, about, maps, make("div", { class: "wide", tabIndex: 0, role: "region", "aria-label": "sites" }, table), more);
    setGroup(0);
  };

  document.querySelectorAll("table.sortable").forEach(makeSortable);
  const data = JSON.parse(document.getElementById("data").textContent);
  if (data.groups.length) explore(document.getElementById("explorer"), data);
})();
