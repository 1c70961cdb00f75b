"""Short questions, each with what a right answer holds."""

CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Egypt": "Cairo", "Canada": "Ottawa", "Norway": "Oslo", "Peru": "Lima",
    "Kenya": "Nairobi", "Austria": "Vienna", "Cuba": "Havana", "Portugal": "Lisbon", "Thailand": "Bangkok", "Iran": "Tehran",
    "Poland": "Warsaw", "Hungary": "Budapest", "Chile": "Santiago", "Nepal": "Kathmandu", "Finland": "Helsinki",
}  # fmt: skip
SUMS = ((7, 5), (12, 9), (30, 14), (45, 27), (8, 8), (16, 25), (63, 19), (11, 70), (99, 3), (38, 44))
PRODUCTS = ((3, 4), (6, 7), (9, 8), (12, 5), (11, 11), (7, 7), (15, 4), (8, 6))
OTHERS = {
    "What is the opposite of hot?": "cold",
    "What is the opposite of early?": "late",
    "How many days has a week?": "seven|7",
    "How many legs has a spider?": "eight|8",
    "What is the chemical symbol of gold?": "Au",
    "What is the chemical formula of water?": "H2O|H₂O",
    "Which planet is the largest of the solar system?": "Jupiter",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "What gas do plants take in from the air?": "carbon dioxide|CO2",
    "In Python, which function gives the length of a list?": "len",
    "In Python, which keyword defines a function?": "def",
    "Which SQL keyword removes duplicate rows from a result?": "DISTINCT",
    "What does HTML stand for?": "markup language",
    "Which HTTP status code says that something was not found?": "404",
    "What is the square root of 144?": "12",
    "How many bits has a byte?": "eight|8",
}


def questions() -> dict[str, tuple[str, ...]]:
    """Each question, and the texts of which a right answer holds one."""
    found = {f"What is the capital of {country}?": (capital,) for country, capital in CAPITALS.items()}
    found |= {f"What is {a} + {b}?": (str(a + b),) for a, b in SUMS}
    found |= {f"What is {a} times {b}?": (str(a * b),) for a, b in PRODUCTS}
    return found | {question: tuple(answer.split("|")) for question, answer in OTHERS.items()}
