"""The words of the world: 8 super-groups of 6 ad categories, brands, attributes, profiles and content themes."""

from collections.abc import Mapping
from itertools import product

GROUPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Automobile": {
        "Electric Cars": ("electric car", "EV", "battery car"),
        "Family SUVs": ("family SUV", "sport utility vehicle"),
        "Motorcycles": ("motorcycle", "motorbike"),
        "Car Care": ("car wax", "car cleaning kit"),
        "Used Cars": ("used car", "second-hand car", "pre-owned car"),
        "Tires": ("all-season tire", "car tire"),
    },
    "Electronics": {
        "Smartphones": ("smartphone", "mobile phone", "handset"),
        "Laptops": ("laptop", "notebook computer"),
        "Headphones": ("headphones", "wireless earbuds"),
        "Cameras": ("mirrorless camera", "digital camera"),
        "Smart Watches": ("smart watch", "fitness watch"),
        "Game Consoles": ("game console", "handheld console"),
    },
    "Fashion": {
        "Running Shoes": ("running shoes", "trainers", "sneakers"),
        "Dresses": ("summer dress", "dress"),
        "Menswear": ("men's jacket", "men's shirt"),
        "Handbags": ("handbag", "leather bag"),
        "Jewelry": ("necklace", "silver ring"),
        "Children's Clothing": ("children's wear", "kids' clothes"),
    },
    "Beauty and Health": {
        "Skin Care": ("face cream", "moisturizer", "skin serum"),
        "Makeup": ("lipstick", "makeup palette"),
        "Hair Care": ("shampoo", "hair conditioner"),
        "Vitamins": ("vitamin tablets", "dietary supplement"),
        "Dental Care": ("electric toothbrush", "toothpaste"),
        "Fitness Equipment": ("home treadmill", "exercise bike"),
    },
    "Home and Living": {
        "Sofas": ("sofa", "couch"),
        "Mattresses": ("mattress", "memory foam mattress"),
        "Kitchen Appliances": ("air fryer", "kitchen blender"),
        "Robot Vacuums": ("robot vacuum", "vacuum cleaner"),
        "Lighting": ("desk lamp", "ceiling light"),
        "Gardening": ("garden tools", "lawn mower"),
    },
    "Food and Drink": {
        "Coffee": ("coffee beans", "ground coffee"),
        "Tea": ("green tea", "loose-leaf tea"),
        "Snacks": ("mixed nuts", "snack box"),
        "Wine": ("red wine", "table wine"),
        "Meal Delivery": ("meal kit", "meal delivery"),
        "Pet Food": ("cat food", "dog food"),
    },
    "Travel and Leisure": {
        "Hotels": ("hotel stay", "resort stay"),
        "Flights": ("flight ticket", "air ticket"),
        "Cruises": ("cruise", "sea voyage"),
        "Camping Gear": ("camping tent", "sleeping bag"),
        "Theme Parks": ("theme park ticket", "park pass"),
        "Mobile Games": ("mobile game", "phone game"),
    },
    "Services": {
        "Language Courses": ("English course", "language lessons"),
        "Online Degrees": ("online degree", "distance learning program"),
        "Credit Cards": ("credit card", "cashback card"),
        "Car Insurance": ("car insurance", "motor policy"),
        "Home Loans": ("home loan", "mortgage"),
        "Job Search": ("job search app", "career service"),
    },
}
"""Super-group (first-level category) -> category (second-level) -> names of its product, all synonyms."""

ATTRIBUTES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "Automobile": {"energy": ("electric", "hybrid", "petrol"), "use": ("city", "family", "long trips")},
    "Electronics": {"color": ("black", "silver", "blue"), "warranty": ("one year", "two years")},
    "Fashion": {"season": ("spring", "summer", "autumn", "winter"), "material": ("cotton", "leather", "wool")},
    "Beauty and Health": {"origin": ("plant-based", "marine", "clinical"), "size": ("travel", "standard")},
    "Home and Living": {"style": ("modern", "rustic", "classic"), "room": ("bedroom", "living room", "studio")},
    "Food and Drink": {"flavor": ("mild", "rich", "fruity"), "pack": ("single", "family", "gift box")},
    "Travel and Leisure": {"season": ("spring", "summer", "winter"), "group": ("couples", "families", "friends")},
    "Services": {"term": ("monthly", "yearly", "one-off"), "access": ("app", "website", "branch")},
}
"""Super-group -> attribute -> its values. They say nothing about who likes the ad."""

PRICES = ("budget", "standard", "premium")
"""Price levels of ads, low to high."""

CATEGORIES: tuple[tuple[str, str], ...] = tuple(
    (group, list(GROUPS[group])[place]) for place in range(6) for group in GROUPS
)
"""``(super-group, category)`` of category c; its super-group is number ``c % 8``."""

NUM_GROUPS = len(GROUPS)
NUM_CATEGORIES = len(CATEGORIES)

_STEMS = (
    "Alder", "Birch", "Calder", "Dove", "Elm", "Fair", "Green", "Harbor", "Iron", "Juniper", "Kings", "Lake",
    "Maple", "North", "Oak", "Pine", "Quill", "River", "Silver", "Thorn", "Umber", "Vale", "West", "Yarrow",
)  # fmt: skip
_ENDINGS = (
    "ton", "field", "wood", "gate", "mark", "line", "crest", "well", "brook", "ford", "ridge", "stone",
    "haven", "view", "worth", "dale", "port", "bridge", "hill", "shore", "light", "craft", "works", "land",
)  # fmt: skip
_BRANDS = tuple(stem + ending for ending, stem in product(_ENDINGS, _STEMS))
_LINES = (
    "Aero", "Bolt", "Comet", "Drift", "Echo", "Flux", "Glide", "Halo", "Indigo", "Jet", "Kite", "Lumen", "Mira",
    "Nova", "Orbit", "Pulse", "Quest", "Ray", "Sol", "Terra", "Ultra", "Vista", "Wave", "Xeno", "Yonder", "Zen",
)  # fmt: skip

AD_NAMES = ("{brand} {line} {noun}", "{line} {noun} by {brand}", "New {brand} {line} {noun}", "{brand} {noun} {line}")
"""Paraphrases of an ad's name."""

MAX_BRANDS = len(_BRANDS) // NUM_CATEGORIES


def brand(category: int, number: int) -> str:
    """The name of brand ``number`` (0..11) of a category; no two categories share a brand."""
    return _BRANDS[number * NUM_CATEGORIES + category]


def line(category: int, brand_number: int, number: int) -> str:
    """The name of product line ``number`` of a brand."""
    return _LINES[(7 * category + 5 * brand_number + number) % len(_LINES)]


def spu(category: int, brand_number: int, number: int) -> str:
    """The name of a standard product unit: brand and line."""
    return f"{brand(category, brand_number)} {line(category, brand_number, number)}"


PROFILE: Mapping[str, Mapping[str, float]] = {
    "age": {"18-24": 0.25, "25-34": 0.35, "35-44": 0.2, "45-54": 0.12, "55-80": 0.08},
    "gender": {"female": 0.5, "male": 0.5},
    "region": {"Northport": 0.45, "Rivermouth": 0.3, "Highmoor": 0.15, "Eastvale": 0.1},
    "education": {"high school diploma": 0.5, "bachelor's degree": 0.4, "master's degree": 0.1},
    "occupation": {
        "Internet industry": 0.35, "education": 0.25, "manufacturing": 0.2, "retail": 0.12, "health care": 0.08,
    },
    "consumption_level": {"low": 0.3, "medium": 0.5, "high": 0.2},
}  # fmt: skip
"""Profile field -> value -> share of users. Few values a field: a profile must not single out a user."""

THEMES = (
    "emotion", "entertainment", "mental health", "celebrity gossip", "comedy", "history", "local news", "weather",
    "football", "basketball", "pets", "astrology", "science", "music", "film", "television drama",
    "animation", "society", "dance", "poetry", "folk tales", "street interviews", "wildlife", "chess",
)  # fmt: skip
"""Content categories without commercial meaning."""

ANGLES = (
    ("everyday", "story"), ("the best of", "this week"), ("late-night", "talk"), ("a beginner's look at", "explained"),
)  # fmt: skip
"""How a theme is told; a noise topic is a theme and an angle."""

GUIDES = (("how to choose", "guide"), ("living with", "diary"))
"""How a category is told; a commercial topic is a category and a guide."""

REVIEWS = ("hands-on review", "unboxing", "price comparison", "owner's verdict")
"""What content about an SPU is called."""

ACTIONS = ("play short video", "read article", "search", "watch live stream")
"""Positive behaviors of the content domain; each item has its own."""
