"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 20, COLUMNS = 4, TIE = -1, UNPARSABLE = -2;
  const at = (id) => document.getElementById(id);
  const made = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;  // never as HTML
    return element;
  };
  const found = data.rows.map((row) =>
    [row.prompt, ...Object.values(row.responses).map((one) => one.response)].join("\n").toLowerCase());
  let limit = PAGE;

  const winnerName = (contest, winner) =>
    winner === TIE ? "tie" : winner === UNPARSABLE ? "no answer of the judge" : `${contest.names[winner]} won`;

  function fillWinners() {
    data.contests.forEach((contest, i) => {
      const group = made("optgroup");
      group.label = `${contest.names.length === 2 ? `${contest.names.join(" v. ")}: ` : ""}${contest.criterion}`;
      for (const winner of [...contest.names.keys(), TIE, UNPARSABLE]) {
        const count = data.rows.filter((row) => row.won[i] === winner).length;
        if (!count) continue;
        const option = made("option", "", `${winnerName(contest, winner)} (${count})`);
        option.value = `${i} ${winner}`;
        group.append(option);
      }
      at("won").append(group);
    });
  }

  function fillColumns() {
    data.policies.forEach((name, i) => {
      const label = made("label"), box = made("input");
      box.type = "checkbox";
      box.value = i;
      box.checked = i < COLUMNS;
      label.append(box, name);
      at("columns").append(label);
    });
    at("columns").hidden = data.policies.length < 2;
  }

  function chosen() {
    const asked = at("search").value.trim().toLowerCase();
    const [contest, winner] = (at("won")?.value || "").split(" ");
    return data.rows.filter((row, i) =>
      found[i].includes(asked) && (!contest || row.won[contest] === Number(winner)));
  }

  function tokens(one) {
    const text = made("p");
    if (!one.token_rewards) {
      text.textContent = one.response.trimStart();
      return text;
    }
    for (const [token, reward] of one.token_rewards) {
      const span = made("span", reward < 0 ? "token less" : "token", token);
      const strength = data.scale ? 0.65 * Math.min(Math.abs(reward) / data.scale, 1) : 0;
      span.style.background = `rgba(${reward < 0 ? "217, 95, 2" : "31, 120, 180"}, ${strength.toFixed(3)})`;
      span.title = `${reward} nats`;
      text.append(span);
    }
    return text;
  }

  function wins(row, name) {
    const criteria = {};  // by those that it won over
    data.contests.forEach((contest, i) => {
      if (contest.names[row.won[i]] !== name) return;
      const others = contest.names.length === 2 ? contest.names.find((one) => one !== name) : "all others";
      criteria[others] = [...(criteria[others] || []), contest.criterion];
    });
    return Object.entries(criteria).map(([others, won]) => `won over ${others}: ${won.join(", ")}`);
  }

  function response(row, i) {
    const one = row.responses[i], name = data.policies[i];
    const won = wins(row, name), main = at("won")?.value.split(" ")[0] || 0;
    const winner = won.length && data.contests[main].names[row.won[main]] === name;
    const box = made("div", winner ? "response winner" : "response"), head = made("h4", "", name);
    const figures = Object.entries({ score: one.score, KL: one.kl, tokens: one.tokens, ...one.features })
      .filter(([, value]) => value !== undefined).map(([label, value]) => `${label} ${Number(value.toFixed(2))}`);
    if (figures.length) head.append(made("small", "", ` ${figures.join(", ")}`));
    box.append(head, tokens(one));
    if (won.length) head.append(made("small", "won", ` ✓ ${won.join("; ")}`));
    return box;
  }

  function drawn(row) {
    const element = made("article", "row"), prompt = made("p", "prompt", row.prompt), side = made("div", "responses");
    prompt.append(made("small", "", ` #${row.id}${row.sample ? `, sample ${row.sample}` : ""}`));
    for (const box of at("columns").querySelectorAll("input:checked")) {
      if (row.responses[box.value]) side.append(response(row, box.value));
    }
    element.append(prompt, side);
    return element;
  }

  function show() {
    const rows = chosen(), prompts = new Set(data.rows.map((row) => `${row.id} ${row.prompt}`)).size;
    const kept = data.total > prompts ? ` The page holds the first ${prompts} of ${data.total} prompts.` : "";
    at("count").textContent = `${rows.length} of ${data.rows.length} rows.${kept}`;
    at("rows").replaceChildren(...rows.slice(0, limit).map(drawn));
    at("more").hidden = rows.length <= limit;
  }

  const again = () => { limit = PAGE; show(); };
  if (at("won")) fillWinners();
  fillColumns();
  for (const event of ["input", "change"]) at("controls").addEventListener(event, again);
  at("controls").addEventListener("submit", (event) => event.preventDefault());
  at("more").addEventListener("click", () => { limit += PAGE; show(); });
  show();
})();
