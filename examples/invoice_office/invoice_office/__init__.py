"""The back office of a small firm: invoices, bank payments and reminders behind a web service."""

from invoice_office.env import InvoiceOffice

__all__ = ["InvoiceOffice"]
