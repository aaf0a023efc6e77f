"use strict";
// What all pages share: words, theme, elements, numbers, tables. Texts of others become text nodes only.

const WORDS = {
  zh: {
    "preparing": "准备中", "running": "训练中", "done": "已完成", "stopped": "已停止", "failed": "出错",
    "lost": "连接已断开", "step": "步", "step of": "步数", "epoch": "轮", "time left": "剩余时间",
    "per step": "每步", "loss now": "当前损失", "loss mean": "平均损失", "validation": "验证损失",
    "stage": "阶段", "took": "用时", "began": "开始", "warnings": "警告",
    "save": "保存", "save and stop": "保存并停止", "asked": "已请求，将在当前步之后执行",
    "sure": "保存并结束这次训练？", "theme": "明暗", "language": "English",
    "loss": "损失", "raw": "每步", "smoothed": "平滑", "epoch mean": "一轮的平均", "smoothing": "平滑程度",
    "loss by sigma": "按 sigma 分段的损失（平滑）", "validation loss": "验证损失",
    "learning rate": "学习率", "memory": "内存与显存", "gradient norm": "梯度范数", "speed": "每步用时",
    "previews": "预览", "first": "第一张", "newest": "最新", "no copy": "（未附图片）",
    "strength": "适配器强度", "strength by block and kind": "适配器强度：按块与层",
    "norm": "权重差的 Frobenius 范数", "at step": "步", "by kind": "按层", "all blocks": "全部块",
    "alerts and warnings": "警报与警告", "nothing told": "没有警告。",
    "time by stage": "各阶段用时", "settings": "配置", "changed settings": "与默认值不同的配置",
    "all settings": "全部配置", "name": "名称", "value": "值", "default": "默认", "files": "已保存的文件",
    "buckets": "分桶", "ledger": "逐图账本", "picture": "图片", "samples": "样本数", "change": "变化",
    "verdict": "判断", "loss_1_of_4": "损失 1/4", "loss_2_of_4": "损失 2/4", "loss_3_of_4": "损失 3/4", "loss_4_of_4": "损失 4/4", "dataset": "数据集", "width": "宽", "height": "高",
    "pictures": "图片", "with repeats": "含重复", "batches": "批次", "facts": "这次训练",
    "device": "设备", "precision": "精度", "adapters": "适配器", "optimizer": "优化器", "seed": "种子",
    "other": "其他", "alert": "警报", "non-finite": "不是有限数",
    "earlier": "第 {} 步由先前的训练完成，其记录不在状态中；数值见那次训练的日志和报告。",
    "lost words": "训练已结束，或与它的连接断开了。报告在权重旁边：{}",
    "written": "写于", "runs": "训练对比", "run": "训练", "report": "报告", "settings that differ": "不同的配置",
    "progress": "进度", "last loss": "最后的平均损失", "no difference": "这些训练的配置没有不同。",
    "show": "显示", "hours": "小时", "minutes": "分", "seconds": "秒", "moment": "（截至此刻）",
    "s": "秒", "more rows": "只显示前 {} 行",
    "prepare_process": "启动", "open_state": "打开状态", "check": "检查", "prepare_data": "读取数据集",
    "check_optimization": "试优化器", "check_resume": "核对状态", "check_compile": "试编译",
    "prepare_strategies": "分词器", "plan_memory": "规划显存", "cache_inputs": "缓存图片与文本",
    "load_models": "加载模型", "prepare_model": "准备模型", "attach_network": "接入适配器",
    "prepare_optimization": "准备优化器", "start_logs": "开始记录", "take_over": "接手",
    "run_epochs": "训练", "validate": "验证", "save files": "保存文件", "finish": "收尾",
    "draw": "预览", "evaluate": "评估", "prepare_previews": "准备预览",
    "loss beside the base": "损失减去基础模型的损失", "loss of held-out pictures": "留出图片的损失",
    "AUC of trained and held-out pictures": "能否分辨训练过的图（AUC，0.5：不能）", "drift from the base": "偏离基础模型",
    "trained": "训练过的图", "held_out": "留出的图", "base": "基础模型", "auc": "AUC",
    "without_subject": "不含主题的提示词", "with_subject": "含主题的提示词",
  },
  en: {
    "step of": "step", "per step": "per step", "loss now": "loss now", "loss mean": "mean loss",
    "asked": "asked for: it happens after this step", "sure": "Save, and end this run?", "theme": "theme",
    "language": "中文", "loss by sigma": "loss by quarter of sigma (smoothed)",
    "strength": "strength of the adapters", "strength by block and kind": "strength of the adapters by block and layer",
    "norm": "Frobenius norm of the weight difference", "nothing told": "Nothing was warned of.",
    "changed settings": "settings that differ from the defaults", "no copy": "(no copy)",
    "loss_1_of_4": "loss 1/4", "loss_2_of_4": "loss 2/4", "loss_3_of_4": "loss 3/4", "loss_4_of_4": "loss 4/4",
    "files": "saved files", "facts": "this run", "memory": "memory", "speed": "time of a step",
    "earlier": "Steps {} were done by an earlier run, of which the state keeps no record; see its logs and report.",
    "lost words": "The run has ended, or the connection to it is lost. The report is beside the weights: {}",
    "lost": "connection lost", "ledger": "ledger by picture", "runs": "runs compared",
    "last loss": "last mean loss", "no difference": "The settings of these runs do not differ.",
    "moment": "(as of now)", "more rows": "the first {} rows are shown", "non-finite": "not finite",
    "prepare_process": "start", "open_state": "open the state", "prepare_data": "read the pictures",
    "check_optimization": "try the optimizer", "check_resume": "compare the state", "check_compile": "try the compiler",
    "prepare_strategies": "tokenizers", "plan_memory": "plan the memory", "cache_inputs": "cache pictures and texts",
    "load_models": "load models", "prepare_model": "prepare the model", "attach_network": "attach adapters",
    "prepare_optimization": "make the optimizer", "start_logs": "start the logs", "take_over": "take over",
    "run_epochs": "training", "save files": "saving", "draw": "previews", "evaluate": "evaluation",
    "prepare_previews": "prepare previews",
    "loss beside the base": "loss less that of the base", "AUC of trained and held-out pictures": "AUC (0.5: trained pictures cannot be told)",
    "trained": "trained pictures", "held_out": "held-out pictures", "auc": "AUC",
    "without_subject": "prompts without the subject", "with_subject": "with the subject",
  },
};

function remembered(key, value) {
  try {
    if (value !== undefined) localStorage.setItem(key, value);
    return localStorage.getItem(key);
  } catch { return null; }
}

let language = remembered("language") || ((navigator.language || "").startsWith("zh") ? "zh" : "en");
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function word(key, ...values) {
  const found = Object.hasOwn(WORDS[language], key) ? WORDS[language][key] : key;
  return values.reduce((text, value) => text.replace("{}", () => value), found);
}

function useTheme() {
  document.documentElement.dataset.theme = remembered("theme") || (dark.matches ? "dark" : "light");
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
}
useTheme();
dark.addEventListener("change", useTheme);

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}
const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "-";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e");
  if (size >= 1000) return value.toFixed(0);
  return String(Number(value.toPrecision(digits)));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "-";
  if (seconds < 10) return `${Number(seconds.toPrecision(2))} ${word("s")}`;
  const whole = Math.round(seconds), h = Math.floor(whole / 3600), m = Math.floor((whole % 3600) / 60), s = whole % 60;
  const two = (x) => String(x).padStart(2, "0");
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
}

const day = (seconds) => seconds ? new Date(seconds * 1000).toLocaleString(language === "zh" ? "zh-CN" : "en-GB") : "-";

function toolbar(redraw, ...more) {
  return el("div", {class: "tools"}, more,
    el("button", {onclick: () => { language = language === "zh" ? "en" : "zh"; remembered("language", language); useTheme(); redraw(); }}, word("language")),
    el("button", {onclick: () => {
      remembered("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
      useTheme();
    }}, word("theme")));
}

const card = (title, ...children) => el("section", {class: "card"}, title ? el("h2", {}, title) : null, children);
const wide = (section) => { section.classList.add("wide"); return section; };

// Rows under columns; a click on a column's name sorts by it.
function table(columns, rows, changed = () => false) {
  const numeric = columns.map((_, place) => rows.length > 0 && rows.every((row) => row[place] === null || typeof row[place] === "number"));
  const body = el("tbody");
  let order = null;
  const shown = () => body.replaceChildren(...(order ? [...rows].sort(order) : rows).map((row) => el("tr", {},
    row.map((value, place) => el("td", {class: (numeric[place] ? "number" : "") + (changed(row, place) ? " changed" : "")},
      value === null ? "" : typeof value === "number" ? number(value, Number.isInteger(value) ? 12 : 4) : String(value))))));
  const heads = columns.map((name, place) => {
    let up = -1;
    const sort = () => {
      up = -up;
      order = (a, b) => {
        const [x, y] = [a[place], b[place]];
        if (x === y) return 0;
        if (x === null || x === "") return 1;
        if (y === null || y === "") return -1;
        return up * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
      };
      shown();
    };
    return el("th", {class: numeric[place] ? "number" : "", tabindex: 0, onclick: sort,
      onkeydown: (event) => { if (event.key === "Enter") sort(); }}, word(name));
  });
  shown();
  return el("div", {class: "scroll"}, el("table", {}, el("thead", {}, el("tr", {}, heads)), body));
}

const dataOf = (id) => JSON.parse(document.getElementById(id).textContent);
