"""Adaptation of τ and β: pure maps (state, measurement) → state on plain numbers, equal on every rank."""
