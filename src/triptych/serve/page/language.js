// The page's texts in English (which stand in index.html) and Korean.

const KOREAN = {
  skip: "본문으로 건너뛰기", tagline: "언어가 그림을 보는 세 가지 방법", captions: "설명", ask: "질문", compare: "두 사진", fewshot: "예시로 배우기",
  chat: "대화", find: "검색", inside: "내부",
  captionsHelp: "사진을 고르세요. 세 시스템이 각각 설명을 씁니다. 단어를 가리키거나 Tab 키로 옮기면 시스템이 어디를 보았는지 나타납니다.",
  captionRun: "설명 쓰기", askHelp: "사진 한 장에 대해 질문하세요.", question: "질문", choices: "쉼표로 나눈 선택지 (비워도 됩니다)", askRun: "묻기",
  compareHelp: "어느 사진에 무엇이 있는지 물어보세요. 그다음 사진을 바꾸어 보세요. 정말로 보는 시스템은 반대로 답합니다.",
  left: "왼쪽", right: "오른쪽", swap: "사진 바꾸기",
  fewshotHelp: "이름을 붙인 사진을 몇 장 주세요. Flamingo가 학습 없이 마지막 사진에 같은 방식으로 이름을 붙입니다.",
  addShot: "예시 추가", toName: "이름 붙일 사진", prompt: "이어서 쓸 글", complete: "이름 붙이기",
  chatHelp: "사진 한 장 또는 여러 장에 대해 Flamingo와 이야기하세요. 언제든 사진을 더할 수 있습니다.",
  message: "메시지", send: "보내기", restart: "처음부터", findHelp: "서버와 함께 시작한 사진 보관함에서 찾습니다.", query: "사진에 있는 것",
  search: "찾기", gates: "Flamingo의 게이트", gatesHelp: "고정된 언어 모델의 블록 앞에 있는 두 게이트의 tanh 값입니다. 0은 닫힌 상태로, 학습을 시작할 때의 값입니다.",
  masks: "Q-Former의 세 마스크", sentence: "문장", draw: "그리기", footer: "모든 것이 이 컴퓨터에서 실행되며 외부에서 아무것도 불러오지 않습니다.",
  drop: "사진을 고르거나 여기에 놓으세요", chosen: "고른 사진", notPicture: "이 파일은 사진이 아닙니다. JPEG, PNG, WebP, GIF 파일을 고르세요.", working: "처리 중…",
  done: "완료", needPhoto: "먼저 사진을 고르세요.", name: "이름", remove: "삭제", loading: "모델을 불러오는 중입니다…", order: "순서", person: "나", noLibrary: "이 서버에는 보관함이 없습니다. --library 로 시작하세요.",
  block: "블록", attention: "주의", feedForward: "전방",
  itc: "대조(ITC): 질의는 질의끼리, 글은 글끼리만 봅니다.", itm: "매칭(ITM): 질의와 글이 서로 모두 봅니다.", itg: "생성(ITG): 글은 모든 질의와 앞선 글을 봅니다.",
};
const ENGLISH = {
  drop: "Choose a photo, or drop one here", chosen: "The chosen photo", notPicture: "This file is not a picture: choose a JPEG, PNG, WebP or GIF file.", working: "Working…", done: "Done",
  needPhoto: "Choose a photo first.", name: "Name", remove: "Remove", loading: "The models are loading…", order: "Order", person: "You", noLibrary: "This server has no library: start it with --library.",
  block: "Block", attention: "Attention", feedForward: "Feed-forward",
  itc: "Contrast (ITC): queries attend to queries, text to text.", itm: "Matching (ITM): queries and text all attend to all.",
  itg: "Generation (ITG): text attends to all queries and to the text before it.",
};

let korean = (navigator.language || "").startsWith("ko");

export function text(key) {
  return (korean ? KOREAN[key] : ENGLISH[key]) ?? key;
}

export function startLanguage(button) {
  for (const place of document.querySelectorAll("[data-text]")) ENGLISH[place.dataset.text] ??= place.textContent;
  const apply = () => {
    document.documentElement.lang = korean ? "ko" : "en";
    button.textContent = korean ? "English" : "한국어";
    button.lang = korean ? "en" : "ko";
    for (const place of document.querySelectorAll("[data-text]")) place.textContent = text(place.dataset.text);
  };
  button.addEventListener("click", () => {
    korean = !korean;
    apply();
  });
  apply();
}
