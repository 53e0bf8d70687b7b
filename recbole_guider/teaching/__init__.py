"""How a teacher and a student learn, whatever models they are; ``model/guider.py`` puts it together."""
