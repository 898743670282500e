"""A part of the items of Minecraft 1.11.2, and keys."""

ALL_ITEMS = [
  'dirt',
  'air',
  'log',
  'log2',
  'planks',
  'stick',
  'crafting_table',
  'wooden_pickaxe',
  'cobblestone',
  'stone_pickaxe',
  'iron_ore',
  'furnace',
  'iron_ingot',
  'iron_pickaxe',
  'diamond',
]

INVERSE_KEYMAP = {
  'forward': '17',
  'left': '30',
  'back': '31',
  'right': '32',
  'jump': '57',
  'sneak': '42',
  'sprint': '29',
  'attack': '-100',
  'use': '-99',
}

MAX_LIFE, MAX_BREATH, MAX_FOOD, MAX_XP, MAX_SCORE = 20, 300, 20, 1395, 0x7FFFFF
MAX_FOOD_SATURATION = 20.0
