"""Makes the data of the quickstart: three small tasks whose success can be counted, each in another data format.

    python recipes/data/make.py

    dates    a date as people write it  -> ISO 8601                   prompt / completion
    tickets  a customer's message       -> JSON for the help desk     messages (chat)
    find     a wish about files         -> a find command             instruction / input / output (Alpaca)

The rows are made up, from one seed and with the standard library alone: the same code gives the same bytes. What makes
a row one of a kind (the date, the order number, the command) is never in train and eval both, however it is worded.
"""

import json
import random
from datetime import date, timedelta
from pathlib import Path

TRAIN_ROWS, EVAL_ROWS = 300, 50
MONTHS = "January February March April May June July August September October November December".split()
ONES = "first second third fourth fifth sixth seventh eighth ninth".split()
TEENS = "tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth".split()
DAY_WORDS = [*ONES, *TEENS, "twentieth", *(f"twenty-{one}" for one in ONES), "thirtieth", "thirty-first"]


def ordinal(day: int) -> str:
    return f"{day}{'th' if 10 < day < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


# Each maker gives what makes the row one of a kind, and the row.
Made = tuple[str, dict]


def make_date(pick: random.Random) -> Made:
    when = date(1950, 1, 1) + timedelta(days=pick.randrange(365 * 80))
    day, month, short, year = when.day, MONTHS[when.month - 1], when.strftime("%b"), when.year
    written = pick.choice(
        [
            f"{month} {day}, {year}",
            f"{month} {ordinal(day)}, {year}",
            f"{day} {month} {year}",
            f"{ordinal(day)} of {month} {year}",
            f"the {DAY_WORDS[day - 1]} of {month} {year}",
            f"{when:%A}, {day} {month} {year}",
            f"{when:%a} {short} {day} {year}",
            f"{day}-{short}-{year}",
            f"{short} {day}, {year}",
            f"{year}, {month} {day}",
            f"{day} {short.upper()} {year}",
        ]
    )
    return when.isoformat(), {"prompt": written, "completion": when.isoformat()}


ITEMS = (
    "kettle lamp jacket keyboard blender backpack headset monitor toaster tent camera router drill chair watch speaker "
    "printer charger scooter helmet"
).split()
PROBLEMS = {
    "billing": [
        "I was charged twice for {the}",
        "the invoice for {the} shows the wrong amount",
        "I paid for {the} but the discount is missing",
        "please send me a receipt for {the}",
        "my card was billed {euros} euros too much for {the}",
    ],
    "shipping": [
        "{the} has not arrived yet",
        "where is {the} that I bought last week",
        "tracking for {the} has not moved for {days} days",
        "{the} was delivered to the wrong address",
        "the courier lost {the}",
    ],
    "returns": [
        "{the} arrived broken and I want my money back",
        "I would like to send {the} back",
        "{the} is the wrong colour, can I exchange it",
        "how do I return {the}",
        "I changed my mind about {the} and want a refund",
    ],
    "technical": [
        "{the} does not turn on",
        "{the} keeps switching itself off",
        "how do I reset {the}",
        "{the} makes a strange noise after {days} days",
        "the app cannot find {the}",
    ],
    "account": [
        "I cannot log in to see {the}",
        "my password no longer works, so I cannot track {the}",
        "please change the email address on my account for {the}",
        "I want to close my account once {the} is here",
        "someone else ordered {the} from my account",
    ],
}
OPENINGS = ["", "", "Hi, ", "Hello, ", "Good morning, ", "Dear team, "]
URGENT = ["This is urgent.", "I need an answer today.", "Please hurry!", "Call me back at once."]
CALM = ["", "", "No rush.", "Thanks!", "Thank you.", "Best regards"]


def make_ticket(pick: random.Random) -> Made:
    team = pick.choice(list(PROBLEMS))
    order = pick.randrange(10_000, 100_000) if pick.random() < 0.75 else None
    urgent = pick.random() < 0.4
    item = f"{pick.choice(['the', 'my'])} {pick.choice(ITEMS)}"
    if order:
        item += pick.choice([f" (order {order})", f" from order {order}", f", order no. {order},", f" #{order}"])
    problem = pick.choice(PROBLEMS[team]).format(the=item, days=pick.randrange(3, 10), euros=pick.randrange(5, 90))
    text = f"{pick.choice(OPENINGS)}{problem}"
    text = f"{text[0].upper()}{text[1:].rstrip(',')}. {pick.choice(URGENT if urgent else CALM)}".strip()
    answer = json.dumps({"team": team, "order": order, "urgent": urgent})
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return str(order) if order else text, {"messages": messages}


KINDS = {
    "log files": "*.log",
    "Python files": "*.py",
    "JPEG images": "*.jpg",
    "PNG images": "*.png",
    "Markdown files": "*.md",
    "text files": "*.txt",
    "PDFs": "*.pdf",
    "CSV files": "*.csv",
    "JSON files": "*.json",
    "shell scripts": "*.sh",
    "backups": "*.bak",
    "zip archives": "*.zip",
    "C sources": "*.c",
    "videos": "*.mp4",
}
FOLDERS = (
    "/var/log /etc /tmp /home/anna /home/ben /srv/data /srv/www /opt/app /usr/share/doc /mnt/backup /var/cache . src "
    "docs tests downloads photos projects/blog projects/shop build"
).split()
ACTIONS = {"Find": "", "List": "", "Show": "", "Delete": " -delete", "Remove": " -delete", "Count": " | wc -l"}
UNITS = {"KB": "k", "MB": "M", "GB": "G"}


def make_find(pick: random.Random) -> Made:
    verb, kind, folder = pick.choice(list(ACTIONS)), pick.choice(list(KINDS)), pick.choice(FOLDERS)
    days, size, unit = pick.randrange(2, 91), pick.randrange(1, 100), pick.choice(list(UNITS))
    wish, test = pick.choice(
        [
            ("", ""),
            (f" larger than {size} {unit}", f" -size +{size}{UNITS[unit]}"),
            (f" smaller than {size} {unit}", f" -size -{size}{UNITS[unit]}"),
            (f" changed in the last {days} days", f" -mtime -{days}"),
            (f" older than {days} days", f" -mtime +{days}"),
            (" that are empty", " -empty"),
        ]
    )
    wish = f"{verb} {pick.choice(['all ', '', 'the '])}{kind}{wish}"
    command = f"find {folder} -name '{KINDS[kind]}'{test}{ACTIONS[verb]}"
    return command, {"instruction": wish, "input": folder, "output": command}


TASKS = {"dates": make_date, "tickets": make_ticket, "find": make_find}


def draw(name: str) -> dict[str, list[dict]]:
    pick = random.Random(f"mlora quickstart {name}")
    made: dict[str, dict] = {}
    while len(made) < EVAL_ROWS + TRAIN_ROWS:
        key, row = TASKS[name](pick)
        made.setdefault(key, row)
    rows = list(made.values())
    return {"eval": rows[:EVAL_ROWS], "train": rows[EVAL_ROWS:]}


def main() -> None:
    for name in TASKS:
        folder = Path(__file__).parent / name
        folder.mkdir(exist_ok=True)
        for part, rows in draw(name).items():
            lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
