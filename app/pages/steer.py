"""Steer: ask all sources to go on from a prompt, with and without a feature; the form is filled from the address."""

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.generations.steer import Inference, steer_form, steer_page
from app.web.dependencies import LabelsToRead, RunResults
from app.web.templates import render

router = APIRouter(include_in_schema=False)


@router.get("/runs/{run}/steer")
def show_steer(request: Request, results: RunResults, session: LabelsToRead, client: Inference) -> HTMLResponse:
    """The form, prefilled entirely from the address; nothing runs until it is sent."""
    return render(request, steer_page(session, results, client, steer_form(results, dict(request.query_params))))
