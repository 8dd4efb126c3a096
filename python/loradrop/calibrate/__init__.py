"""Correctors in minutes: closed forms and a little regression on states that the engine itself gives."""
