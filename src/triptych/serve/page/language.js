// The page's texts in English (most of them stand in index.html) and Korean.

const KOREAN = {
  skip: "본문으로 건너뛰기", tagline: "언어가 그림을 보는 세 가지 방법", sections: "차례", captions: "캡션", ask: "질문", compare: "두 사진", fewshot: "예시로 배우기",
  chat: "대화", find: "검색", inside: "내부",
  captionsHelp: "사진을 고르면 시스템마다 영어로 캡션을 씁니다. 단어를 가리키거나 Tab 키로 옮겨 가면 시스템이 어디를 보았는지 나타납니다.",
  captionRun: "캡션 쓰기", askHelp: "사진 한 장에 대해 영어로 질문하세요.", question: "질문", choices: "선택지 (쉼표로 구분, 비워도 됩니다)", askRun: "묻기",
  compareHelp: "어느 사진에 무엇이 있는지 영어로 물어보세요. 그다음 두 사진의 자리를 바꾸어 보세요. 정말로 보는 시스템은 반대로 답합니다.",
  left: "왼쪽", right: "오른쪽", first: "답 1", second: "답 2", swap: "자리 바꾸기",
  followsPhoto: "자리를 바꾸니 답도 바뀌었습니다. 답이 사진을 따라갑니다.", samePlace: "자리를 바꾸어도 답이 같습니다. 사진이 아니라 자리를 따른 것입니다.",
  fewshotHelp: "사진 몇 장에 이름을 붙이세요. Flamingo가 학습 없이 마지막 사진에 같은 방식으로 이름을 붙입니다.",
  addShot: "예시 추가", toName: "이름 붙일 사진", prompt: "문장의 시작 (영어)", complete: "이름 붙이기",
  chatHelp: "사진에 대해 Flamingo와 영어로 이야기하세요. 메시지마다 사진을 더할 수 있습니다.",
  message: "메시지", send: "보내기", restart: "처음부터", findHelp: "이 서버의 사진 보관함에서 찾습니다.", query: "사진에 있는 것 (영어)",
  search: "찾기", gates: "Flamingo의 게이트", gatesHelp: "고정된 언어 모델의 블록 앞에 있는 두 게이트의 tanh 값입니다. 막대는 크기를 나타냅니다. 0은 닫힌 상태이며, 학습은 0에서 시작합니다.",
  masks: "Q-Former의 세 마스크", masksHelp: "행이 열에 어텐션할 수 있는 칸을 칠했습니다. 질의 벡터가 먼저, 문장의 단어가 그다음입니다.", sentence: "문장 (영어)", draw: "그리기", footer: "모든 것이 이 서버에서 실행되며 외부에서 아무것도 불러오지 않습니다.",
  drop: "사진을 고르거나 여기에 놓으세요", chosen: "고른 사진", notPicture: "이 파일은 사진이 아닙니다. JPEG, PNG, WebP, GIF 파일을 고르세요.", working: "처리 중…",
  done: "완료", needPhoto: "먼저 사진을 고르세요.", name: "이름", remove: "삭제", loading: "모델을 불러오는 중입니다…", person: "나",
  expected: "사진 전체가 암시하는 단어:", lookedAt: "본 곳 –", noMaps: "어디를 보았는지 보려면 PyTorch가 필요합니다: pip install 'triptych[torch]'",
  errorNetwork: "서버가 응답하지 않습니다. 서버가 실행 중인지 확인하세요.", error400: "서버가 이 요청을 처리할 수 없습니다.", error413: "사진이 너무 큽니다. 더 작은 사진을 고르거나 사진 수를 줄이세요.",
  error429: "지금은 요청이 많습니다. 잠시 후 다시 시도하세요.", error500: "모델에서 오류가 났습니다. 서버의 기록을 확인하세요.", error501: "이 기능에 필요한 패키지가 서버에 없습니다.",
  error503: "지금은 답할 수 없습니다. 잠시 후 다시 시도하세요.", error504: "시간이 너무 오래 걸려 그만두었습니다. 다시 시도하세요.",
  noModel: "이 서버에는 이 일을 하는 모델이 없습니다.", closest: "뚜렷이 맞는 사진이 없습니다. 가장 가까운 사진은 다음과 같습니다.", failed: "– 불러오지 못한 모델:",
  noLibrary: "이 서버에는 사진 보관함이 없습니다. triptych index DIR --library my.library 로 만들고, 서버를 --library my.library 로 시작하세요.",
  block: "블록", attention: "어텐션", feedForward: "피드포워드", queryVector: "질의",
  itc: "대조(ITC): 질의는 질의끼리, 글은 글끼리만 봅니다.", itm: "매칭(ITM): 질의와 글이 서로 모두 봅니다.", itg: "생성(ITG): 글은 모든 질의와 앞선 글을 봅니다.",
  baseball: "야구 경기", bmx: "스케이트보드를 타는 사람", cat: "고양이", coast: "바닷가", cyclist: "자전거를 타는 사람", dog: "개", gull: "갈매기", kitchen: "부엌", pizzas: "피자",
  riders: "말을 탄 사람들", street: "거리", tennis: "테니스 경기", "horse-noto": "말 그림", "horse-openmoji": "다른 말 그림", "owl-noto": "부엉이 그림", "owl-openmoji": "다른 부엉이 그림", "penguin-noto": "펭귄 그림",
};
const ENGLISH = {
  drop: "Choose a photo, or drop one here", chosen: "The chosen photo", notPicture: "This file is not a picture: choose a JPEG, PNG, WebP or GIF file.", working: "Working…", done: "Done",
  needPhoto: "Choose a photo first.", name: "Name", remove: "Remove", loading: "The models are loading…", person: "You",
  followsPhoto: "After the swap the answer changed, too: it follows the photos.", samePlace: "After the swap the answer is the same: it follows the place, not the photos.",
  expected: "The photo as a whole suggests:", lookedAt: "Where it looked –", noMaps: "Maps of where it looked need PyTorch: pip install 'triptych[torch]'",
  errorNetwork: "The server does not answer: is it still running?",
  noModel: "No model of this server can do this.", closest: "No photo matches clearly. The closest ones:", failed: "– could not be loaded:",
  noLibrary: "This server has no library of photos. Make one with triptych index DIR --library my.library and start the server with --library my.library.",
  block: "Block", attention: "Attention", feedForward: "Feed-forward", queryVector: "query",
  itc: "Contrast (ITC): queries attend to queries, text to text.", itm: "Matching (ITM): queries and text all attend to all.",
  itg: "Generation (ITG): text attends to all queries and to the text before it.",
  baseball: "A baseball game", bmx: "A skateboarder", cat: "A cat", coast: "A coast", cyclist: "A cyclist", dog: "A dog", gull: "A gull", kitchen: "A kitchen", pizzas: "Pizzas",
  riders: "People on horses", street: "A street", tennis: "A tennis match", "horse-noto": "A drawing of a horse", "horse-openmoji": "Another drawing of a horse", "owl-noto": "A drawing of an owl",
  "owl-openmoji": "Another drawing of an owl", "penguin-noto": "A drawing of a penguin",
};

let korean = (navigator.language || "").startsWith("ko");

export function text(key) {
  return (korean ? KOREAN[key] : ENGLISH[key]) ?? key;
}

// What to tell about a failed request: the kind of the error in the page's language, and the server's own words, which are English.
export function explained(error) {
  const kind = text(`error${error.kind}`);
  if (kind === `error${error.kind}`) return error.message;
  return error.kind === "Network" ? kind : `${kind} (${error.message})`;
}

export function startLanguage(button) {
  for (const node of document.querySelectorAll("[data-text]")) ENGLISH[node.dataset.text] ??= node.textContent;
  for (const node of document.querySelectorAll("[data-label]")) ENGLISH[node.dataset.label] ??= node.getAttribute("aria-label");
  const apply = () => {
    document.documentElement.lang = korean ? "ko" : "en";
    button.textContent = korean ? "English" : "한국어";
    button.lang = korean ? "en" : "ko";
    for (const node of document.querySelectorAll("[data-text]")) node.textContent = text(node.dataset.text);
    for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", text(node.dataset.label));
    for (const node of document.querySelectorAll("[data-alt]")) node.alt = text(node.dataset.alt);
  };
  button.addEventListener("click", () => {
    korean = !korean;
    apply();
  });
  apply();
}
